"""The type of a model before it is loaded, and the BOS that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.configs import compose

from sparsemend.run.model_type import model_type, type_at, with_bos


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    return tmp_path


def test_a_folder_states_its_type_in_its_config(gemma: Path) -> None:
    assert type_at(str(gemma)) == "gemma2"
    assert type_at(f"{gemma}/absent") is None
    assert type_at("") is None
    assert type_at("embedded:tiny") == "llama"


def test_an_architecture_is_a_type() -> None:
    assert model_type(compose("run", ["model=tiny_untrained"]).model) == "llama"


def test_the_hub_is_asked_for_the_config_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_config_dict(path: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"model_type": f"{path} {revision}"}, {}

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", get_config_dict)
    assert type_at("org/name", revision="main") == "org/name main"


def test_auto_follows_the_model_of_the_run(gemma: Path) -> None:
    lines = ["model=local", f"model.path={gemma}"]
    auto = compose("run", lines)
    assert with_bos(auto).data.bos is True
    assert auto.data.bos == "auto"  # what is recorded as asked
    assert with_bos(compose("run", [])).data.bos is False
    given = compose("run", [*lines, "data.bos=false"])
    assert with_bos(given) is given


def test_auto_follows_the_tokenizer_where_the_config_has_another_model(gemma: Path) -> None:
    tokenizer: Any = SimpleNamespace(name_or_path=str(gemma))
    assert with_bos(compose("run", []), tokenizer).data.bos is True


def test_auto_says_when_nothing_tells_the_model(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer: Any = SimpleNamespace(name_or_path="")
    assert with_bos(compose("run", []), tokenizer).data.bos is False
    assert "so they begin without BOS; set data.bos=true" in caplog.text

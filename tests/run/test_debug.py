"""A debug run: what is cut, and that nothing else takes it for a real one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from support.configs import compose
from support.families import random_model
from support.unusual import unusual_model
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.config.locations import conf_folder
from sparsemend.config.values import config_hash, plain
from sparsemend.data.base import Examples
from sparsemend.model import ModelSource
from sparsemend.preflight import check as preflight
from sparsemend.result.finished import finished_run
from sparsemend.run.debug import FirstBlocks, cut_short, first_windows
from sparsemend.run.keys import Keys
from sparsemend.run.windows import Windows


class Source(ModelSource):
    name, context_length = "m", 16

    def __init__(self, family: str) -> None:
        self.family = family

    def load(self, *, seed: int) -> PreTrainedModel:
        return random_model(self.family)

    def tokenizer(self) -> None:
        return None


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
def test_a_model_of_two_blocks_computes_what_the_first_two_give(family: str) -> None:
    whole, short = random_model(family), FirstBlocks(Source(family), 2).load(seed=0)
    tokens = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        states = whole(input_ids=tokens, output_hidden_states=True).hidden_states
        cut = short(input_ids=tokens, output_hidden_states=True).hidden_states
    assert len(find_blocks(short)[1]) == 2 < len(find_blocks(whole)[1])
    assert len(cut) == 3
    assert torch.equal(cut[1], states[1])


def test_values_are_cut_only_where_a_member_has_such_a_key() -> None:
    cfg = compose("run", ["debug=fast", "method=masked_lora"])
    assert cut_short(cfg).method.max_steps == 4  # enough for a round of seft
    assert cfg.method.max_steps == 50  # stays in result.json, beside `debug`
    assert cut_short(cfg).data.calibration_samples == 8
    none = cut_short(compose("run", ["debug=fast", "method=none"]))
    assert "max_steps" not in none.method
    assert "zero_shot" not in none.evaluation
    real = compose("run", [])
    assert cut_short(real) is real


@pytest.mark.parametrize(
    "method", sorted(p.stem for p in (conf_folder() / "method").glob("*.yaml"))
)
def test_every_method_can_be_cut_short(method: str) -> None:
    preflight.check(cut_short(compose("run", ["debug=fast", f"method={method}"])))


def test_windows_are_cut_where_they_are_measured() -> None:
    rows = torch.zeros(5, 4, dtype=torch.int64)
    cut = first_windows(Windows(rows, rows, Examples.of(rows), Examples.of(rows), None), 2)
    sizes = [len(part) for part in (cut.test, cut.validation, cut.train, cut.calibration)]
    assert sizes == [2, 2, 5, 5]


def test_a_debug_run_is_no_real_run_to_caches_and_folders() -> None:
    real, debug = compose("run", []), compose("run", ["debug=fast"])
    assert config_hash(plain(real)) != config_hash(plain(debug))
    keys = [Keys(cfg, torch.device("cpu")).model() for cfg in (real, debug)]
    assert keys[0] != keys[1]


def test_a_debug_run_is_not_measured_again(tmp_path: Path) -> None:
    content = '{"status": "finished", "config": {"debug": {"blocks": 2}}}'
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match="that was a debug run"):
        finished_run(str(tmp_path))


@pytest.mark.parametrize("family", ["jamba", "mamba", "gemma3n_text"])
def test_what_the_first_blocks_of_a_family_leave_still_runs(family: str) -> None:
    model = unusual_model(family)
    source = SimpleNamespace(name=family, context_length=None, load=lambda *, seed: model)
    cut = FirstBlocks(cast(ModelSource, source), 1).load(seed=0)
    assert len(find_blocks(cut)[1]) == (4 if family == "gemma3n_text" else 1)
    assert cut(input_ids=torch.arange(3, 11)[None], use_cache=False).logits.isfinite().all()

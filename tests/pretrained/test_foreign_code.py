"""Python code that a checkpoint brings runs only where model.trust_remote_code=true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.checkpoints import changed
from support.families import random_model

from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.run.user_code import code_digest

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    says = "hello"
"""
AUTO_MAP = {"AutoConfig": "own_llama.OwnConfig", "AutoModelForCausalLM": "own_llama.OwnForCausalLM"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    base = tmp_path / "base"
    random_model("llama").save_pretrained(base)
    config = {"model_type": "own_llama", "auto_map": AUTO_MAP, "architectures": ["OwnForCausalLM"]}
    folder = changed(tmp_path / "model", base, config=config)
    (folder / "own_llama.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))
    return folder


def checkpoint(folder: Path, *, trust_remote_code: bool) -> Checkpoint:
    return Checkpoint(path=str(folder), revision=None, trust_remote_code=trust_remote_code)


def test_foreign_code_is_refused_naming_the_key(folder: Path, tmp_path: Path) -> None:
    (folder / "own_llama.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{CODE}")
    with pytest.raises(ValueError, match=r"own_llama\.Own.*set model\.trust_remote_code"):
        checkpoint(folder, trust_remote_code=False).load(dtype=torch.float32, attention=None)
    assert not (tmp_path / "ran").exists()


def test_trusted_code_builds_the_model_and_its_text_decides_the_cache_key(folder: Path) -> None:
    model = checkpoint(folder, trust_remote_code=True).load(dtype=torch.float32, attention=None)
    assert type(model).__name__ == "OwnForCausalLM"
    assert model.says == "hello"
    before = code_digest(model)
    (folder / "own_llama.py").write_text(CODE.replace("hello", "goodbye"))
    again = checkpoint(folder, trust_remote_code=True).load(dtype=torch.float32, attention=None)
    assert again.says == "goodbye"
    assert code_digest(again) != before


def test_the_export_of_foreign_code_brings_the_code(folder: Path, tmp_path: Path) -> None:
    model = checkpoint(folder, trust_remote_code=True).load(dtype=torch.float32, attention=None)
    model.save_pretrained(tmp_path / "out")
    assert "OwnForCausalLM" in (tmp_path / "out" / "own_llama.py").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    again = checkpoint(tmp_path / "out", trust_remote_code=True)
    loaded = again.load(dtype=torch.float32, attention=None)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)

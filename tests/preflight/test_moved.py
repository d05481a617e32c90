"""The model beside from_run is that of the run, wherever it lies now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from support import result_folders

from sparsemend.checkpoint.model import find_model
from sparsemend.preflight.moved import check_moved


def model_folder(folder: Path, width: int) -> Path:
    """A folder with one linear of `width` outputs in each of two blocks."""
    folder.mkdir(parents=True)
    linears = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(width, 4) for i in (0, 1)}
    save_file(linears, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    content = result_folders.result()
    content["config"]["model"]["path"] = str(tmp_path / "old")
    folder = result_folders.write(tmp_path / "run", content)
    shutil.copytree(model_folder(tmp_path / "exported", 8), folder / "model")
    (folder / "model" / "masks.safetensors").touch()
    return folder


def check(run: Path, path: Path) -> None:
    cfg = OmegaConf.create({"from_run": str(run), "model": {"path": str(path)}})
    assert isinstance(cfg, DictConfig)
    check_moved(cfg, find_model(cfg.model))


def test_the_model_of_the_run_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    check(run, model_folder(tmp_path / "new", 8))


def test_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    message = r"is not the model of from_run.* have 2 linears of size \(16, 4\), .* the run 0;"
    with pytest.raises(ValueError, match=message):
        check(run, model_folder(tmp_path / "new", 16))

"""A checkpoint is written where it goes, and nowhere else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from sparsemend.training.checkpoint_file import CheckpointFile


def test_a_checkpoint_needs_no_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    CheckpointFile().save_checkpoint({"step": 3}, tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt") == {"step": 3}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_what_cannot_be_written_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    CheckpointFile().save_checkpoint({"step": 3}, path)
    with pytest.raises(AttributeError):  # of pickle, which meets a function without a name
        CheckpointFile().save_checkpoint({"step": 4, "callback": lambda: None}, path)
    assert torch.load(path) == {"step": 3}
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_checkpoint_is_named_with_the_way_on(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    CheckpointFile().save_checkpoint({"step": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:300])
    said = rf"^{path}, which an earlier attempt left, cannot be read .*; remove that file, and"
    with pytest.raises(ValueError, match=said):
        CheckpointFile().load_checkpoint(path)

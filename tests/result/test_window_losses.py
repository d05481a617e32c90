"""Losses by window: written whole, read without torch, repeated where nothing was repaired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsemend.result.window_losses import path_of, read_losses, repeat_losses, write_losses

METRIC = "perplexity/test"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    losses = torch.tensor([1.5, 2.25, 3.0])
    write_losses(tmp_path, "repaired", {METRIC: losses})
    assert read_losses(tmp_path, "repaired", METRIC).tolist() == [1.5, 2.25, 3.0]
    assert read_losses(tmp_path, "repaired", METRIC).dtype == np.float64


def test_what_was_not_measured_is_none_and_leaves_no_file(tmp_path: Path) -> None:
    write_losses(tmp_path, "dense", {})
    assert not path_of(tmp_path, "dense").exists()
    assert read_losses(tmp_path, "dense", METRIC) is None
    write_losses(tmp_path, "dense", {METRIC: torch.ones(2)})
    assert read_losses(tmp_path, "dense", "perplexity/task") is None


def test_a_state_may_be_another_one_itself(tmp_path: Path) -> None:
    repeat_losses(tmp_path, "pruned", "repaired")
    assert read_losses(tmp_path, "repaired", METRIC) is None
    write_losses(tmp_path, "pruned", {METRIC: torch.tensor([4.0])})
    repeat_losses(tmp_path, "pruned", "repaired")
    assert read_losses(tmp_path, "repaired", METRIC).tolist() == [4.0]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = path_of(tmp_path, "repaired")
    path.parent.mkdir()
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"repaired.safetensors is broken .* run that cell again"):
        read_losses(tmp_path, "repaired", METRIC)

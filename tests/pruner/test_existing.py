"""Existing and NoPruner: what is there stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsemend.pruner.existing import Existing
from sparsemend.pruner.none import NoPruner
from sparsemend.sparse.mask_file import save_masks
from sparsemend.sparse.pattern import Pattern

KEEP = {"a": torch.tensor([[True, False, True]])}


def test_zeros_are_off_the_support() -> None:
    weight = torch.tensor([[0.0, 1.0, -0.0], [1e-30, 0.0, -2.0]])
    pruned = Existing(masks=None)(weight, None, 0.5, Pattern())
    assert pruned.keep.tolist() == [[False, True, False], [True, False, True]]
    assert torch.equal(pruned.weight, weight)


def test_masks_beside_the_model_are_found(tmp_path: Path) -> None:
    save_masks(KEEP, tmp_path / "masks.safetensors")
    supports = Existing(masks=None).supports(tmp_path)
    assert supports is not None
    assert torch.equal(supports["a"], KEEP["a"])


def test_named_masks_go_before_those_beside_the_model(tmp_path: Path) -> None:
    save_masks({"a": ~KEEP["a"]}, tmp_path / "masks.safetensors")
    save_masks(KEEP, tmp_path / "other.safetensors")
    supports = Existing(masks=str(tmp_path / "other.safetensors")).supports(tmp_path)
    assert supports is not None
    assert torch.equal(supports["a"], KEEP["a"])


def test_a_hub_name_has_no_masks_beside_it() -> None:
    assert Existing(masks=None).supports("some-group/some-model") is None


def test_named_masks_that_are_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pruner\.masks"):
        Existing(masks=str(tmp_path / "masks.safetensors")).supports(tmp_path)


def test_no_pruner_keeps_zeros_too() -> None:
    weight = torch.tensor([[0.0, 1.0]])
    pruned = NoPruner()(weight, None, 0.0, Pattern())
    assert pruned.keep.all()
    assert torch.equal(pruned.weight, weight)


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, Pattern()), (0.5, Pattern(2, 4))])
def test_no_pruner_refuses_a_sparsity(sparsity: float, pattern: Pattern) -> None:
    with pytest.raises(ValueError, match="set sparsity=0"):
        NoPruner()(torch.ones(1, 4), None, sparsity, pattern)

"""Packed supports, SparseLinear's invariant, and zero counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsemend.sparse.count import count_zeros
from sparsemend.sparse.linear import SparseLinear, check_supports, zero_off_
from sparsemend.sparse.mask_file import load_masks, save_masks
from sparsemend.sparse.packing import pack, packed_by_products, unpack


def random_keep(rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) < 0.4


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
def test_unpacking_undoes_packing(columns: int) -> None:
    keep = random_keep(5, columns)
    packed = pack(keep)
    assert packed.shape == (5, -(-columns // 8))
    assert packed.dtype == torch.uint8
    assert torch.equal(packed_by_products(keep), packed)
    assert torch.equal(unpack(packed, columns), keep)


def test_the_first_input_is_the_lowest_bit() -> None:
    keep = torch.tensor([[True, False, False, False, False, False, False, True, True]])
    assert pack(keep).tolist() == [[129, 1]]


def test_saved_supports_come_back(tmp_path: Path) -> None:
    masks = {"a.b": random_keep(3, 11), "c": random_keep(4, 8)}
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert loaded.keys() == masks.keys()
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a sparsemend-masks-1 file"):
        load_masks(tmp_path / "other.safetensors")


def sparse_linear(keep: Tensor) -> SparseLinear:
    return SparseLinear(nn.Parameter(torch.ones(keep.shape)), None, keep)


def test_a_sparse_linear_zeroes_off_its_support_at_once() -> None:
    keep = random_keep(4, 11)
    linear = sparse_linear(keep)
    assert torch.equal(linear.keep, keep)
    assert torch.equal(linear.weight != 0, keep)


def test_projection_also_removes_what_is_not_finite() -> None:
    keep = torch.tensor([[True, False]])
    linear = sparse_linear(keep)
    with torch.no_grad():
        linear.weight.fill_(torch.nan)
        linear.weight[0, 0] = 3
    linear.project_()
    assert linear.weight.tolist() == [[3.0, 0.0]]


def test_a_new_support_replaces_the_old_one() -> None:
    keep = random_keep(4, 11)
    linear = sparse_linear(keep)
    linear.set_effective_(torch.full((4, 11), 2.0), ~keep)
    assert torch.equal(linear.effective_weight(), 2.0 * ~keep)


def test_supports_travel_with_the_state_dict() -> None:
    keep = random_keep(4, 11)
    other = sparse_linear(~keep)
    other.load_state_dict(sparse_linear(keep).state_dict())
    assert torch.equal(other.keep, keep)


@pytest.mark.parametrize("keep", [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)])
def test_a_support_of_the_wrong_type_or_shape_is_refused(keep: Tensor) -> None:
    with pytest.raises(ValueError, match="keep must be bool of shape"):
        SparseLinear(nn.Parameter(torch.ones(2, 3)), None, keep)


def test_zeros_are_counted_exactly() -> None:
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0, 1e-38, 1.0], [0.0, -0.0, 2.0]]))
    assert count_zeros(linear).zeros == 3
    assert count_zeros(linear).sparsity == 0.5


def test_escaped_weights_are_reported_by_name() -> None:
    model = nn.Sequential(sparse_linear(torch.tensor([[True, False]])))
    check_supports(model)
    with torch.no_grad():
        model[0].weight.fill_(1)
    with pytest.raises(RuntimeError, match="0: 1 weights off the support"):
        check_supports(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeroing_off_the_support_leaves_plus_zero_whatever_was_there(dtype: torch.dtype) -> None:
    weight = torch.tensor([[torch.nan, -1.0, torch.inf, -0.0], [2.5, -3.0, torch.nan, -0.0]])
    weight = weight.to(dtype)
    keep = torch.tensor([[False, False, False, False], [True, True, True, True]])
    kept = weight[1].clone()
    zero_off_(weight, keep)
    assert torch.equal(torch.signbit(weight[0]), torch.zeros(4, dtype=torch.bool))
    assert not weight[0].any()
    assert torch.equal(weight[1].view(torch.uint8), kept.view(torch.uint8))


def test_a_support_first_read_in_inference_can_be_trained_under() -> None:
    with torch.inference_mode():
        assert torch.equal(unpack(pack(torch.ones(2, 9, dtype=torch.bool)), 9), torch.ones(2, 9))
    weight = torch.ones(2, 9, requires_grad=True)
    (weight * unpack(pack(torch.eye(2, 9, dtype=torch.bool)), 9)).sum().backward()
    assert torch.equal(weight.grad, torch.eye(2, 9))

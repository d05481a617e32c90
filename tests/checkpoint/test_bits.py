"""Zeros by their bits: signs, dtypes, chunks, groups by an independent loop, and patterns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsemend.checkpoint import bits as weight_bits
from sparsemend.checkpoint.bits import SIZES, Support, pattern_of, support_of
from sparsemend.checkpoint.headers import read_header
from sparsemend.checkpoint.masks import Mask, read_masks
from sparsemend.sparse.mask_file import save_masks
from sparsemend.sparse.packing import pack
from sparsemend.sparse.pattern import Pattern


def written(weight: Tensor, folder: Path) -> Path:
    path = folder / "one.safetensors"
    save_file({"odd": torch.zeros(3, dtype=torch.uint8), "weight": weight}, path)
    return path


def read(weight: Tensor, folder: Path, keep: Tensor | None = None, **sizes: tuple) -> Support:
    path = written(weight, folder)
    mask = None if keep is None else Mask(tuple(keep.shape), pack(keep).numpy())
    return support_of(path, read_header(path)["weight"], mask, **sizes)


def sparse_weight(rows: int, columns: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (torch.rand(rows, columns, generator=generator) < 0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zeros_are_counted_as_torch_counts_them(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = sparse_weight(33, 45).to(dtype)
    weight[0, :3] = torch.tensor([-0.0, torch.nan, torch.finfo(dtype).smallest_normal / 4])
    found = read(weight, tmp_path)
    assert found.zeros == int((weight == 0).sum())  # minus zero is zero, a denormal is not
    assert found.sparsity == found.zeros / (33 * 45)


def test_eight_bit_floats_are_read(tmp_path: Path) -> None:
    weight = sparse_weight(8, 16).to(torch.float8_e4m3fn)
    assert read(weight, tmp_path).zeros == int((weight.float() == 0).sum())


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stores weights as I8"):
        read(torch.zeros(2, 2, dtype=torch.int8), tmp_path)


def test_reading_by_rows_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, keep = sparse_weight(33, 45), sparse_weight(33, 45, seed=1) != 0
    whole = read(weight, tmp_path, keep)
    monkeypatch.setattr(weight_bits, "READ_AT_ONCE", 45 * 4 * 2)
    assert read(weight, tmp_path, keep) == whole


@pytest.mark.parametrize("columns", [64, 45, 3])
def test_fullest_groups_are_those_of_a_loop(columns: int, tmp_path: Path) -> None:
    weight = sparse_weight(3, columns, seed=2)
    sizes = (*SIZES, 3, 5, 12, 24)
    nonzero = weight.bool().tolist()
    expected = {
        size: max(sum(row[at : at + size]) for row in nonzero for at in range(0, columns, size))
        for size in sizes
    }
    assert read(weight, tmp_path, sizes=sizes).most == expected


@pytest.mark.parametrize("size", [255, 256, 300, 512])
def test_groups_of_more_than_a_byte_counts_are_full_where_nothing_is_zero(
    size: int, tmp_path: Path
) -> None:
    assert read(torch.ones(2, 600), tmp_path, sizes=(size,)).most == {size: size}


def test_weights_off_and_zeros_on_the_mask_are_counted(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 5.0, 0.0]])
    keep = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 0, 0, 1]]).bool()
    found = read(weight, tmp_path, keep)
    assert (found.escaped, found.unused) == (2, 2)
    assert read(weight, tmp_path).escaped is None


def test_masks_are_read_as_they_were_written(tmp_path: Path) -> None:
    masks = {"a": sparse_weight(3, 45) != 0, "b": sparse_weight(4, 16) != 0}
    save_masks(masks, tmp_path / "masks.safetensors")
    read_back = read_masks(tmp_path / "masks.safetensors")
    assert read_back.stays_dense is None
    assert {n: m.shape for n, m in read_back.by_name.items()} == {"a": (3, 45), "b": (4, 16)}
    for name, mask in read_back.by_name.items():
        assert np.array_equal(mask.packed, pack(masks[name]).numpy())


def packed_along_inputs(keep: Tensor) -> np.ndarray:
    """Bool (..., O, I) as bytes (..., O, ceil(I / 8))."""
    return np.packbits(keep.numpy(), axis=-1, bitorder="little")


@pytest.mark.parametrize("inputs", [64, 45, 3])
@pytest.mark.parametrize("at_once", [2**21, 300])
def test_inputs_on_the_axis_before_the_last_are_read_as_if_they_were_last(
    inputs: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_bits, "READ_AT_ONCE", at_once)
    weights = torch.stack([sparse_weight(7, inputs, seed=expert) for expert in range(3)])
    keep = torch.stack([sparse_weight(7, inputs, seed=expert) != 0 for expert in range(3, 6)])
    mask = Mask((3, inputs, 7), packed_along_inputs(keep), inputs_last=False)
    sizes = (*SIZES, 6)
    path = written(weights.transpose(1, 2).contiguous(), tmp_path)
    stacked = support_of(path, read_header(path)["weight"], mask, sizes, inputs_last=False)
    rows = read(weights.flatten(0, 1), tmp_path, keep.flatten(0, 1), sizes=sizes)
    assert stacked.most == rows.most
    assert (stacked.zeros, stacked.escaped, stacked.unused) == (
        rows.zeros,
        rows.escaped,
        rows.unused,
    )


@pytest.mark.parametrize("inputs_last", [True, False])
def test_rows_that_a_mask_keeps_whole_are_outside_the_pattern(
    inputs_last: bool, tmp_path: Path
) -> None:
    weights = torch.stack([n_m(2, 4), torch.ones(8, 64)])  # of the second expert no row is pruned
    mask = Mask((2, 8, 64), packed_along_inputs(weights != 0), inputs_last)
    saved = weights if inputs_last else weights.transpose(1, 2).contiguous()
    path = written(saved, tmp_path)
    tensor = read_header(path)["weight"]
    strict = support_of(path, tensor, mask, inputs_last=inputs_last)
    lenient = support_of(path, tensor, mask, inputs_last=inputs_last, partly_dense=True)
    assert (strict.most[4], strict.dense) == (4, 0)
    assert (lenient.most[4], lenient.dense) == (2, 8 * 64)
    assert pattern_of([lenient]) == Pattern(2, 4)
    assert lenient.sparsity == strict.sparsity == 0.25


def n_m(kept: int, size: int, columns: int = 64) -> Tensor:
    order = torch.rand(8, columns // size, size, generator=torch.Generator().manual_seed(kept))
    return (order.argsort(dim=2) < kept).float().reshape(8, columns)


@pytest.mark.parametrize(
    ("weights", "pattern"),
    [
        ([n_m(2, 4), n_m(2, 4)], "2:4"),
        ([n_m(4, 8)], "4:8"),
        ([n_m(1, 4)], "1:4"),
        ([n_m(1, 2)], "1:2"),
        ([n_m(6, 16)], "6:16"),
        ([n_m(5, 8), n_m(3, 8)], "mixed:8"),
        ([n_m(3, 8), torch.ones(8, 64)], "mixed:8"),  # a dense linear has 8 of 8
        ([n_m(2, 4), sparse_weight(8, 64)], "unstructured"),
        ([torch.zeros(8, 64), sparse_weight(8, 64)], "unstructured"),
        ([sparse_weight(2, 64)], "unstructured"),  # obeys N:32 for an N that says nothing
        ([torch.ones(8, 64)], "unstructured"),
        ([n_m(2, 4, columns=24), n_m(2, 4)], "2:4"),  # 12 of 24 are no 12 of 32
    ],
)
def test_the_tightest_pattern_is_found(weights: list[Tensor], pattern: str, tmp_path: Path) -> None:
    supports = [read(weight, tmp_path) for weight in weights]
    assert pattern_of(supports) == Pattern.parse(pattern)

"""Find the zeros of a checkpoint from its raw bits: numpy alone, a few rows at a time.

A float is zero where every bit but its sign is zero, so bf16, which numpy does not know, needs no
conversion.  The non-zeros of a matrix are packed to one bit each, lowest bit first, as in
`masks.safetensors`; counting zeros, finding N:M and comparing with a mask then read an eighth of a
byte per weight.  Neither torch nor the model is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sparsemend.checkpoint.headers import TensorHeader
from sparsemend.checkpoint.masks import Bits, Mask
from sparsemend.sparse.pattern import Pattern

Rows = NDArray[np.bool_]

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes
READ_AT_ONCE = 2**21  # bytes of a weight at a time, within a processor's cache
SIZES = (2, 4, 8, 16, 32)  # the values of M for which an N:M pattern is looked for
FULL = 0.95  # share of the N places of N:M that hold a non-zero


def _table(size: int) -> Bits:
    """The most non-zeros in any group of `size` bits, for each of the 256 values of a byte."""
    groups = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).reshape(256, -1, size)
    return groups.sum(axis=2, dtype=np.uint8).max(axis=1)


MOST = {size: _table(size) for size in (2, 4, 8)}


@dataclass(frozen=True)
class Support:
    """The zeros of one saved tensor, and how they agree with its mask.

    most: group size M -> most non-zeros in M consecutive inputs of any row; escaped: number of
    non-zeros off the mask; unused: number of zeros on it; both None without a mask; dense: number
    of weights in rows that are kept whole on purpose, which `most` leaves out.
    """

    shape: tuple[int, ...]
    dtype: str
    zeros: int
    most: dict[int, int]
    escaped: int | None = None
    unused: int | None = None
    dense: int = 0
    inputs_last: bool = True

    @property
    def inputs(self) -> int:
        return self.shape[-1 if self.inputs_last else -2]

    @property
    def weights(self) -> int:
        return prod(self.shape)

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def pruned(self) -> int:
        """The number of weights in rows that are not kept whole."""
        return self.weights - self.dense


@dataclass
class _Tally:
    """The counts of a weight that is read part by part."""

    most: dict[int, int]
    zeros: int = 0
    escaped: int = 0
    unused: int = 0
    dense: int = 0

    def add(self, packed: Bits, inputs: int, keep: Bits | None, whole: Rows | None) -> None:
        """Count rows (O, ceil(inputs / 8)) of bits; whole: bool (O,), rows outside any pattern."""
        weights = packed.shape[0] * inputs
        self.zeros += weights - set_bits(packed)
        if keep is not None:
            self.escaped += set_bits(packed & ~keep)
            self.unused += set_bits(keep & ~packed)
        if whole is not None:
            self.dense += int(np.count_nonzero(whole)) * inputs
            packed = packed[~whole]
        not_full = [size for size, most in self.most.items() if most < size]
        for size, fullest in most_in_group(packed, inputs, not_full).items():
            self.most[size] = max(self.most[size], fullest)


def support_of(
    path: Path,
    tensor: TensorHeader,
    mask: Mask | None,
    sizes: tuple[int, ...] = SIZES,
    *,
    inputs_last: bool = True,
    partly_dense: bool = False,
) -> Support:
    """Read one weight of a safetensors file, (..., O, I) or (..., I, O), a few rows at a time.

    partly_dense: rows that the mask keeps whole are outside any pattern.  Raises ValueError on a
    dtype that is not a float.
    """
    if tensor.dtype not in WIDTHS:
        raise ValueError(
            f"{path} stores weights as {tensor.dtype}, which is not one of {', '.join(WIDTHS)}; "
            "give the checkpoint from before quantisation"
        )
    tally = _Tally(dict.fromkeys(sizes, 0))
    with path.open("rb") as file:
        file.seek(tensor.begin)
        read = _read_rows if inputs_last else _read_columns
        read(file, tensor, mask.packed if mask else None, tally, partly_dense=partly_dense)
    mismatches = (tally.escaped, tally.unused) if mask is not None else (None, None)
    read_as = (tally.zeros, tally.most, *mismatches, tally.dense, inputs_last)
    return Support(tensor.shape, tensor.dtype, *read_as)


def _read_rows(
    file: BinaryIO, tensor: TensorHeader, keep: Bits | None, tally: _Tally, *, partly_dense: bool
) -> None:
    """Read a weight (..., O, I), from where the file stands."""
    inputs, width = tensor.shape[-1], WIDTHS[tensor.dtype]
    rows = prod(tensor.shape[:-1])
    flat = None if keep is None else keep.reshape(rows, -1)
    step = max(1, READ_AT_ONCE // max(1, inputs * width))
    for start in range(0, rows, step):
        nonzero = _nonzero(file, min(step, rows - start), inputs, width)
        packed = np.packbits(nonzero, axis=1, bitorder="little")
        part = None if flat is None else flat[start : start + step]
        whole = _whole_rows(part, inputs) if part is not None and partly_dense else None
        tally.add(packed, inputs, part, whole)


def _read_columns(
    file: BinaryIO, tensor: TensorHeader, keep: Bits | None, tally: _Tally, *, partly_dense: bool
) -> None:
    """Read a weight (..., I, O), from where the file stands: some inputs of all outputs at a time.

    Their number is a multiple of every group size, so that no group is cut, and of a byte's bits.
    """
    inputs, outputs = tensor.shape[-2:]
    matrices, width = prod(tensor.shape[:-2]), WIDTHS[tensor.dtype]
    stacked = None if keep is None else keep.reshape(matrices, outputs, -1)
    whole_groups = math.lcm(8, *tally.most)
    step = whole_groups * max(1, READ_AT_ONCE // max(1, whole_groups * outputs * width))
    for matrix in range(matrices):
        mask = None if stacked is None else stacked[matrix]
        whole = _whole_rows(mask, inputs) if mask is not None and partly_dense else None
        for start in range(0, inputs, step):
            columns = min(step, inputs - start)
            nonzero = _nonzero(file, columns, outputs, width)
            packed = np.ascontiguousarray(np.packbits(nonzero, axis=0, bitorder="little").T)
            part = None if mask is None else mask[:, start // 8 : (start + columns + 7) // 8]
            tally.add(packed, columns, part, whole)


def _nonzero(file: BinaryIO, rows: int, columns: int, width: int) -> Rows:
    """The next rows * columns floats of `width` bytes, and whether each is not zero."""
    raw = np.fromfile(file, dtype=f"<u{width}", count=rows * columns).reshape(rows, columns)
    nonzero: Rows = raw << 1 != 0  # the sign is shifted out
    return nonzero


def _whole_rows(keep: Bits, inputs: int) -> Rows:
    """Which rows of a packed mask (O, ceil(I / 8)) keep every input."""
    full = np.packbits(np.ones(inputs, dtype=bool), bitorder="little")
    whole: Rows = (keep == full).all(axis=1)
    return whole


def most_in_group(packed: Bits, columns: int, sizes: list[int]) -> dict[int, int]:
    """Group size -> the most non-zeros in any group of that many consecutive inputs.

    packed: rows of bits, lowest bit first; columns: number of inputs I of a row.
    """
    if not packed.size:
        return dict.fromkeys(sizes, 0)
    seen = np.zeros(256, dtype=bool)
    seen[packed] = True
    most = {size: int(MOST[size][seen].max()) for size in sizes if size in MOST}
    for size in (size for size in sizes if size not in MOST):
        if size % 8 == 0:
            counts = MOST[8][packed]
            most[size] = _fullest(counts if size < 256 else counts.astype(np.uint16), size // 8)
        else:
            bits = np.unpackbits(packed, axis=1, count=columns, bitorder="little")
            most[size] = _fullest(bits if size < 256 else bits.astype(np.uint16), size)
    return most


def _fullest(counts: Bits, length: int) -> int:
    """The highest sum of `length` consecutive counts; the last group of a row may be short."""
    if length % 2 == 0:  # adding strided halves is faster than any reduction over a short axis
        pairs = counts[:, 0::2].copy()
        pairs[:, : counts.shape[1] // 2] += counts[:, 1::2]
        return _fullest(pairs, length // 2)
    if length == 1:
        return int(counts.max())
    return int(np.add.reduceat(counts, np.arange(0, counts.shape[1], length), axis=1).max())


def set_bits(packed: Bits) -> int:
    """The number of ones in an array of bytes."""
    if not packed.any():
        return 0
    return int(MOST[8][packed].sum(dtype=np.int64))


def pattern_of(supports: list[Support]) -> Pattern:
    """The tightest pattern that all supports follow: N:M, mixed:M, or unstructured.

    Tightest is the lowest bound on the density, then the smallest M (2:4 is also a 4:8).  A mixed
    pattern has a smaller N for some linear than for another.
    """
    best, chosen = 1.0, Pattern()
    pruned = [support for support in supports if support.pruned]
    for size in SIZES:
        if not all(_follows(support, size) for support in pruned):
            continue
        kept = [max(1, support.most[size]) for support in pruned]
        weights = sum(support.pruned for support in pruned)
        each = zip(kept, pruned, strict=True)
        density = sum(n * support.pruned for n, support in each) / max(1, size * weights)
        if density < best:
            best = density
            chosen = Pattern(kept[0] if len(set(kept)) == 1 else -1, size)
    return chosen


def _follows(support: Support, size: int) -> bool:
    """Whether a row has a whole group, and nearly every group is as full as the fullest.

    Any sparse matrix obeys some N:M, such as 26:32 at 60 % zeros; only a matrix that was pruned to
    N:M fills its groups.  Kept weights that are zero and short last groups leave a few per cent
    unfilled.
    """
    return (
        size <= support.inputs
        and support.most[size] / size * FULL <= 1 - support.zeros / support.pruned
    )

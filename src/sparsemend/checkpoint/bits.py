"""Find the zeros of a checkpoint from its raw bits: numpy alone, a few rows at a time.

A float is zero where every bit but its sign is zero, so bf16, which numpy does not know, needs no
conversion.  The non-zeros of a matrix are packed to one bit each, lowest bit first, as in
`masks.safetensors`; counting zeros, finding N:M and comparing with a mask then read an eighth of a
byte per weight.  Neither torch nor the model is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsemend.checkpoint.headers import TensorHeader, read_header, read_metadata
from sparsemend.names import MASKS_FORMAT
from sparsemend.sparse.pattern import Pattern

Bits = NDArray[np.uint8]

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
    """The zeros of one weight (O, I), and how they agree with its mask.

    most: group size M -> most non-zeros in M consecutive inputs of any row; escaped: number of
    non-zeros off the mask; unused: number of zeros on it; both None without a mask.
    """

    shape: tuple[int, ...]
    dtype: str
    zeros: int
    most: dict[int, int]
    escaped: int | None = None
    unused: int | None = None

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


def support_of(
    path: Path, tensor: TensorHeader, mask: Bits | None, sizes: tuple[int, ...] = SIZES
) -> Support:
    """Read one weight of a safetensors file; mask: its packed support (O, ceil(I / 8)).

    Raises ValueError on a dtype that is not a float.
    """
    if tensor.dtype not in WIDTHS:
        raise ValueError(
            f"{path} stores weights as {tensor.dtype}, which is not one of {', '.join(WIDTHS)}; "
            "give the checkpoint from before quantisation"
        )
    rows, columns = tensor.shape
    width = WIDTHS[tensor.dtype]
    zeros = escaped = unused = 0
    most = dict.fromkeys(sizes, 0)
    step = max(1, READ_AT_ONCE // max(1, columns * width))
    with path.open("rb") as file:
        file.seek(tensor.begin)
        for start in range(0, rows, step):
            shape = (min(step, rows - start), columns)
            raw = np.fromfile(file, dtype=f"<u{width}", count=shape[0] * columns).reshape(shape)
            nonzero = raw << 1 != 0  # the sign is shifted out
            zeros += nonzero.size - int(np.count_nonzero(nonzero))
            packed = np.packbits(nonzero, axis=1, bitorder="little")
            open_ = [size for size in sizes if most[size] < size]
            for size, fullest in most_in_group(packed, columns, open_).items():
                most[size] = max(most[size], fullest)
            if mask is not None:
                keep = mask[start : start + shape[0]]
                escaped += set_bits(packed & ~keep)
                unused += set_bits(keep & ~packed)
    mismatches = (escaped, unused) if mask is not None else (None, None)
    return Support(tensor.shape, tensor.dtype, zeros, most, *mismatches)


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
    for size in SIZES:
        if not all(_follows(support, size) for support in supports):
            continue
        kept = [max(1, support.most[size]) for support in supports]
        weights = sum(support.weights for support in supports)
        each = zip(kept, supports, strict=True)
        density = sum(n * support.weights for n, support in each) / (size * weights)
        if density < best:
            best = density
            chosen = Pattern(kept[0] if len(set(kept)) == 1 else -1, size)
    return chosen


def _follows(support: Support, size: int) -> bool:
    """Whether nearly every group is as full as the fullest.

    Any sparse matrix obeys some N:M, such as 26:32 at 60 % zeros; only a matrix that was pruned to
    N:M fills its groups.  Kept weights that are zero and short last groups leave a few per cent
    unfilled.
    """
    return support.most[size] / size * FULL <= 1 - support.sparsity


def read_masks(path: Path) -> dict[str, tuple[tuple[int, ...], Bits]]:
    """Linear name -> (shape, packed support) of a masks file; raises ValueError on another file."""
    headers, metadata = read_header(path), read_metadata(path)
    if metadata.get("format") != MASKS_FORMAT:
        raise ValueError(f"{path} is not a {MASKS_FORMAT} file")
    shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
    masks: dict[str, tuple[tuple[int, ...], Bits]] = {}
    for name, header in headers.items():
        packed = np.memmap(path, np.uint8, "r", offset=header.begin, shape=header.shape)
        masks[name] = (tuple(shapes[name]), packed)
    return masks

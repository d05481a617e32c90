"""The Triton kernel; imported only where Triton is installed."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def fuse(  # type: ignore[no-untyped-def]
    weight,
    keep,
    a,
    b,
    output,
    rows,
    columns,
    rank,
    keep_bytes,
    PACKED: tl.constexpr,
    BASE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """One tile of output = keep * (W + B A); RANK: of one product, zeros beyond `rank`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    merged = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, rank, RANK):
        k = begin + tl.arange(0, RANK)
        right = tl.load(
            a + k[:, None] * columns + column[None, :],
            mask=(k[:, None] < rank) & (column[None, :] < columns),
            other=0.0,
        )
        left = tl.load(
            b + row[:, None] * rank + k[None, :],
            mask=(row[:, None] < rows) & (k[None, :] < rank),
            other=0.0,
        )
        merged = tl.dot(left, right, merged, input_precision="ieee")
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    place = row[:, None].to(tl.int64) * columns + column[None, :]
    base = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    if BASE:
        merged += base
    if PACKED:
        byte = row[:, None].to(tl.int64) * keep_bytes + column[None, :] // 8
        bits = tl.load(keep + byte, mask=inside, other=0).to(tl.int32)
        held = ((bits >> (column[None, :] % 8)) & 1) != 0
    else:
        held = base != 0
    merged = tl.where(held, merged, 0.0)
    tl.store(output + place, merged.to(output.dtype.element_ty), mask=inside)

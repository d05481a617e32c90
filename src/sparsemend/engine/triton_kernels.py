"""The Triton kernels of packed weights; imported only where Triton is installed.

A group of 4 rows lies in memory as its values, tile after tile of 32 columns and in a tile row
after row.  So the place of a weight's value is: where the group begins, and as many further as the
group's mask has ones before the weight's own bit.  A program counts them per tile, sums the counts
of its tiles, and 32 lanes read the values of a word side by side.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def count_ones(word):
    """The ones of every uint32, as int32; LLVM makes of these lines the instruction that counts."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def count_before(words, first, WORDS: tl.constexpr):
    """The stored weights of a group in its tiles before `first`."""
    number = tl.arange(0, WORDS)
    count = 0
    for begin in range(0, first * 4, WORDS):
        place = begin + number
        word = tl.load(words + place, mask=place < first * 4, other=0)
        count += tl.sum(count_ones(word.to(tl.uint32, bitcast=True)))
    return count


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def read_words(words, tile, last, before):
    """The words of 4 rows in these tiles, where the values of each begin, and those of all."""
    inside = tile < last
    word0 = tl.load(words + tile * 4, mask=inside, other=0).to(tl.uint32, bitcast=True)
    word1 = tl.load(words + tile * 4 + 1, mask=inside, other=0).to(tl.uint32, bitcast=True)
    word2 = tl.load(words + tile * 4 + 2, mask=inside, other=0).to(tl.uint32, bitcast=True)
    word3 = tl.load(words + tile * 4 + 3, mask=inside, other=0).to(tl.uint32, bitcast=True)
    count0, count1, count2 = count_ones(word0), count_ones(word1), count_ones(word2)
    count = count0 + count1 + count2 + count_ones(word3)
    start0 = before + tl.cumsum(count, 0) - count
    start1 = start0 + count0
    start2 = start1 + count1
    start3 = start2 + count2
    return word0, word1, word2, word3, start0, start1, start2, start3, tl.sum(count)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def spread(values, word, start):
    """Weights (tiles, 32) of a row in float32, by its words and where the values of each begin."""
    bit = tl.full((1, 32), 1, tl.uint32) << tl.arange(0, 32)[None, :].to(tl.uint32)
    held = (word[:, None] & bit) != 0
    place = start[:, None] + count_ones(word[:, None] & (bit - 1))
    return tl.load(values + place, mask=held, other=0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def finish(sums, row, scale, bias, rows, SCALED: tl.constexpr, BIASED: tl.constexpr):
    """Sums of rows, times their scale and with their bias."""
    if SCALED:
        sums *= tl.load(scale + row, mask=row < rows, other=0.0)
    if BIASED:
        sums += tl.load(bias + row, mask=row < rows, other=0.0)
    return sums


@triton.jit(do_not_specialize_on_alignment=["tokens", "columns"])  # type: ignore[untyped-decorator,unused-ignore]
def multiply(
    tokens,
    mask,
    values,
    offsets,
    scale,
    bias,
    output,
    count,
    rows,
    columns,
    tiles,
    share,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    TOKENS: tl.constexpr,
    TILES: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Four rows of (count, rows) = tokens W^T, over `share` tiles of columns.

    SPLIT: output is float32 (parts, count, rows), and `add` goes on.  TOKENS: count, or more.
    Tokens and columns are not taken as aligned: then a lane reads one input at a time, next to the
    lanes beside it, as it reads values, and no layout is changed in the loop.
    """
    group, part = tl.program_id(0), tl.program_id(1)
    words = mask + group.to(tl.int64) * tiles * 4
    values += tl.load(offsets + group)
    first = part * share
    last = tl.minimum(first + share, tiles)
    before = count_before(words, first, WORDS)
    token = tl.arange(0, TOKENS)
    bit = tl.arange(0, 32)
    sums0 = tl.zeros((TOKENS, TILES, 32), tl.float32)
    sums1 = tl.zeros((TOKENS, TILES, 32), tl.float32)
    sums2 = tl.zeros((TOKENS, TILES, 32), tl.float32)
    sums3 = tl.zeros((TOKENS, TILES, 32), tl.float32)
    for begin in range(first, last, TILES):
        tile = begin + tl.arange(0, TILES)
        word0, word1, word2, word3, start0, start1, start2, start3, stored = read_words(
            words, tile, last, before
        )
        column = (tile[:, None] * 32 + bit[None, :])[None, :, :]
        x = tl.load(
            tokens + token[:, None, None] * columns + column,
            mask=(token[:, None, None] < count) & (column < columns),
            other=0.0,
        ).to(tl.float32)
        sums0 += spread(values, word0, start0)[None, :, :] * x
        sums1 += spread(values, word1, start1)[None, :, :] * x
        sums2 += spread(values, word2, start2)[None, :, :] * x
        sums3 += spread(values, word3, start3)[None, :, :] * x
        before += stored
    row = group * 4 + tl.zeros((TOKENS,), tl.int32)
    place = output + (part * count + token).to(tl.int64) * rows + row
    real = token < count
    total0 = tl.sum(tl.sum(sums0, 1), 1)
    total1 = tl.sum(tl.sum(sums1, 1), 1)
    total2 = tl.sum(tl.sum(sums2, 1), 1)
    total3 = tl.sum(tl.sum(sums3, 1), 1)
    if not SPLIT:
        total0 = finish(total0, row, scale, bias, rows, SCALED, BIASED)
        total1 = finish(total1, row + 1, scale, bias, rows, SCALED, BIASED)
        total2 = finish(total2, row + 2, scale, bias, rows, SCALED, BIASED)
        total3 = finish(total3, row + 3, scale, bias, rows, SCALED, BIASED)
    kind = output.dtype.element_ty
    tl.store(place, total0.to(kind), mask=real)
    tl.store(place + 1, total1.to(kind), mask=real & (row + 1 < rows))
    tl.store(place + 2, total2.to(kind), mask=real & (row + 2 < rows))
    tl.store(place + 3, total3.to(kind), mask=real & (row + 3 < rows))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def add(
    sums,
    scale,
    bias,
    output,
    count,
    rows,
    parts,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """(count, rows) from the sums (parts, count, rows), added in the order of the columns."""
    token = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    total = tl.zeros((ROWS,), tl.float32)
    for part in range(parts):
        place = (part * count + token).to(tl.int64) * rows + row
        total += tl.load(sums + place, mask=inside, other=0.0)
    total = finish(total, row, scale, bias, rows, SCALED, BIASED)
    place = token.to(tl.int64) * rows + row
    tl.store(output + place, total.to(output.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def expand(
    mask,
    values,
    offsets,
    output,
    first_group,
    rows,
    columns,
    tiles,
    share,
    TILES: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Write four dense rows over `share` tiles of columns; output (.., columns) begins with row
    4 * first_group.  Scales are left out."""
    group, part = first_group + tl.program_id(0), tl.program_id(1)
    words = mask + group.to(tl.int64) * tiles * 4
    values += tl.load(offsets + group)
    first = part * share
    last = tl.minimum(first + share, tiles)
    before = count_before(words, first, WORDS)
    bit = tl.arange(0, 32)
    kind = output.dtype.element_ty
    row = group * 4 + tl.zeros((TILES, 32), tl.int32)
    output += tl.program_id(0).to(tl.int64) * 4 * columns
    for begin in range(first, last, TILES):
        tile = begin + tl.arange(0, TILES)
        word0, word1, word2, word3, start0, start1, start2, start3, stored = read_words(
            words, tile, last, before
        )
        column = tile[:, None] * 32 + bit[None, :]
        inside = (column < columns) & (tile < last)[:, None]
        place = output + column
        tl.store(place, spread(values, word0, start0).to(kind), mask=inside)
        place += columns
        tl.store(place, spread(values, word1, start1).to(kind), mask=inside & (row + 1 < rows))
        place += columns
        tl.store(place, spread(values, word2, start2).to(kind), mask=inside & (row + 2 < rows))
        place += columns
        tl.store(place, spread(values, word3, start3).to(kind), mask=inside & (row + 3 < rows))
        before += stored

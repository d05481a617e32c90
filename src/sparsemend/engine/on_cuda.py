"""The product with a packed weight on CUDA: sparsemend::packed_linear for tensors on a card.

A few tokens are multiplied by a Triton kernel that reads masks and values as they are stored; for
more, blocks of rows are expanded into a dense scratch, by which torch multiplies.  Sums are float32
in an order that the shapes alone decide, without atomics: a product has the same bits at every
call.  Without Triton torch multiplies by a dense copy, after one warning.

Not measured: no card was at hand, and every number below is a guess from bytes and lanes.  Under
TRITON_INTERPRET=1 the kernels run on a CPU, which is how their tests run.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsemend.engine.build import TORCH, asked_form
from sparsemend.engine.library import Factor
from sparsemend.engine.operator import (
    LIBRARY,
    check_dtype,
    check_factor,
    factor_dtype,
    multiply,
)
from sparsemend.engine.packed import ROWS, pack_weight

log = logging.getLogger(__name__)

FEW = 8  # tokens up to which the kernel multiplies; the sums of more overflow the registers
TILES = {1: 32, 2: 16, 4: 8, 8: 8}  # of a step, by tokens: 64 to 128 sums to a lane at most
WARPS = 4
PROGRAMS = 1 << 10  # fewer groups of rows than this are split over columns; some 8 to a processor
WORDS = 512  # of the mask that are counted at a time
SCRATCH = 1 << 25  # weights of a block that is expanded: 64 MiB in bfloat16
EXPANDED = 32  # tiles of a step where nothing is summed
ADDED = 256  # rows of a program that adds parts


@torch.library.impl(LIBRARY, "packed_linear", "CUDA")
def packed_linear_on_cuda(
    input: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """(.., O) = input (.., I) W^T * scale + bias, as on a CPU but for the order of sums."""
    factor = Factor(mask, values, offsets, scale, bias, out_features)
    check_dtype(input)
    check_factor(factor, input.shape[-1], input.device)
    tokens = input.reshape(-1, input.shape[-1]).contiguous()
    if multiplied_by_triton(input.device):
        output = multiply_on_cuda(tokens, factor)
    else:
        output = multiply(None, tokens, factor)
    return output.view(*input.shape[:-1], out_features)


def multiply_on_cuda(tokens: Tensor, factor: Factor) -> Tensor:
    """(T, O) from tokens (T, I) by the kernels of Triton."""
    if not len(tokens):
        return tokens.new_empty(0, factor.rows)
    with torch.cuda.device_of(tokens):
        return multiply_few(tokens, factor) if len(tokens) <= FEW else multiply_many(tokens, factor)


def multiply_few(tokens: Tensor, factor: Factor) -> Tensor:
    """The same for at most FEW tokens, straight from what is stored."""
    from sparsemend.engine.triton_kernels import add
    from sparsemend.engine.triton_kernels import multiply as multiply_packed

    assert factor.mask is not None
    (count, columns), (groups, tiles, _) = tokens.shape, factor.mask.shape
    padded = 1 << (count - 1).bit_length()
    step = TILES[padded]
    share, parts = split(groups, tiles, step)
    output = tokens.new_empty(count, factor.rows)
    sums = output
    if parts > 1:
        sums = torch.empty(parts, count, factor.rows, device=tokens.device)  # float32
    finish, flags = _finish(factor)
    multiply_packed[groups, parts](
        *(tokens, factor.mask, factor.values, factor.offsets, *finish, sums),
        *(count, factor.rows, columns, tiles, share),
        **flags,
        SPLIT=parts > 1,
        TOKENS=padded,
        TILES=step,
        WORDS=WORDS,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    if parts > 1:
        grid = (count, -(-factor.rows // ADDED))
        add[grid](sums, *finish, output, count, factor.rows, parts, **flags, ROWS=ADDED)
    return output


def multiply_many(tokens: Tensor, factor: Factor) -> Tensor:
    """The same by dense products with blocks of rows."""
    assert factor.mask is not None
    columns, groups = tokens.shape[1], len(factor.mask)
    step = min(groups, max(1, SCRATCH // (ROWS * columns)))
    dtype = factor_dtype(tokens, factor.values)
    right = tokens.to(dtype)
    scratch = torch.empty(step * ROWS, columns, dtype=dtype, device=tokens.device)
    output = tokens.new_empty(len(tokens), factor.rows)
    for begin in range(0, groups, step):
        end = min(begin + step, groups)
        rows = slice(begin * ROWS, min(end * ROWS, factor.rows))
        block = scratch[: rows.stop - rows.start]
        expand_(block, factor, begin, end)
        scale = None if factor.scale is None else factor.scale[rows]
        bias = None if factor.bias is None else factor.bias[rows]
        if scale is None and dtype == output.dtype:
            output[:, rows] = F.linear(right, block, None if bias is None else bias.to(dtype))
            continue
        product = _wide_product(right, block)
        product = product if scale is None else product * scale
        output[:, rows] = product if bias is None else product + bias
    return output


def expand_(block: Tensor, factor: Factor, begin: int, end: int) -> None:
    """Write the stored values of groups begin to end - 1 into block (rows of them, I)."""
    from sparsemend.engine.triton_kernels import expand

    assert factor.mask is not None
    tiles = factor.mask.shape[1]
    share, parts = split(end - begin, tiles, EXPANDED)
    expand[end - begin, parts](
        *(factor.mask, factor.values, factor.offsets, block),
        *(begin, factor.rows, block.shape[1], tiles, share),
        TILES=EXPANDED,
        WORDS=WORDS,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )


def split(groups: int, tiles: int, step: int) -> tuple[int, int]:
    """(tiles of a part, parts) of the columns: whole steps, and about PROGRAMS programs in all."""
    steps = -(-tiles // step)
    each = -(-steps // max(1, PROGRAMS // groups))
    return each * step, -(-steps // each)


def _finish(factor: Factor) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """(scale, bias) for a kernel, and which of them are there; another stands for what is not."""
    scale, bias, some = factor.scale, factor.bias, factor.values
    tensors = (some if scale is None else scale, some if bias is None else bias)
    return tensors, {"SCALED": scale is not None, "BIASED": bias is not None}


def _wide_product(tokens: Tensor, block: Tensor) -> Tensor:
    """tokens block^T, not rounded: float32."""
    if tokens.is_cuda and tokens.dtype != torch.float32:
        return torch.mm(tokens, block.T, out_dtype=torch.float32)  # CUDA alone has this
    return F.linear(tokens.float(), block.float())


def multiplied_by_triton(device: torch.device) -> bool:
    """Whether products on this card are Triton's, and not torch's with a dense copy."""
    return asked_form() != TORCH and _works(device)


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton is there and multiplies a small matrix rightly; a warning says if not."""
    if (refusal := _refusal(device)) is not None:
        log.warning("packed weights are multiplied as dense ones on %s: %s", device, refusal)
    return refusal is None


def _refusal(device: torch.device) -> str | None:
    """Why the kernels cannot be used, in one line."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    weight = (torch.arange(5 * 70).reshape(5, 70) % 7 - 3).float()
    packed = pack_weight(weight, keep=None, values="float32")
    mask, values, offsets = (p.to(device) for p in (packed.mask, packed.values, packed.offsets))
    factor = Factor(mask, values, offsets, None, None, 5)
    try:
        for count in (1, FEW, FEW + 1):
            tokens = (torch.arange(count * 70).reshape(count, 70) % 5 - 2).float()
            if not torch.equal(
                multiply_on_cuda(tokens.to(device), factor).cpu(), tokens @ weight.T
            ):
                return "the products of Triton's kernels come out wrong"
    except Exception as error:  # whatever a compiler on a user's machine may say
        return f"Triton cannot ({str(error).strip().splitlines()[0]})"
    return None

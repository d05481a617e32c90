"""The product with a packed weight as an operator of torch: sparsemend::packed_linear.

Few tokens are multiplied sparse; many too where the processor has the tiles of AMX.  Elsewhere
blocks of rows are expanded into a dense scratch for many, and torch multiplies by that, which it
does faster.  All read the one packed copy.  The operator has no gradient.  It knows its output's
shape without values, so torch.compile traces it.
"""

from __future__ import annotations

from threading import local

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from sparsemend.engine.choice import kernels
from sparsemend.engine.library import AMX, PAIRS, Factor, Kernels
from sparsemend.engine.packed import COLUMNS, PADDING, ROWS, VALUES, unpack_values

# tokens up to which the sparse product is faster than expanding and multiplying densely, by the
# dtype of the dense product; measured at 4096 x 4096 and density 0.3 on a processor with AMX, whose
# dense bfloat16 product is the strongest rival there is.  Products by tiles have no such bound.
FEW = {torch.bfloat16: 12, torch.float32: 64}
# the same of products in pairs of bfloat16, measured at the same on Zen 4: 24.0 ms against 25.8
FEW_PAIRS = 128
# weights of a block that is expanded, into a scratch that is kept: torch's product is slower with
# smaller ones, and fresh memory costs more than the expansion
SCRATCH = 1 << 24
INPUTS = (torch.float32, torch.bfloat16)

LIBRARY = torch.library.Library("sparsemend", "FRAGMENT")
LIBRARY.define(
    "packed_linear(Tensor input, Tensor mask, Tensor values, Tensor offsets, Tensor? scale, "
    "Tensor? bias, int out_features) -> Tensor"
)

_kept = local()  # of each thread: the scratch into which it expands

# dense values of a packed weight, by its mask, where torch multiplies
_dense: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

# the last of a weight's offsets, by the offsets, where they are on a card
_last_offset: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@torch.library.impl(LIBRARY, "packed_linear", "CPU")
def packed_linear(
    input: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """(.., O) = input (.., I) W^T * scale + bias; float32 or bfloat16, sums in float32.

    mask, values, scale: of a PackedWeight.  bias: float32 (O,).
    """
    factor = Factor(mask, values, offsets, scale, bias, out_features)
    check_factor(factor, input.shape[-1], input.device)
    return product(input, factor)


@torch.library.register_fake("sparsemend::packed_linear", lib=LIBRARY)
def _(
    input: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], out_features))


def product(input: Tensor, factor: Factor) -> Tensor:
    """(.., O) from input (.., I), with a factor that `check_factor` has passed for I columns."""
    check_dtype(input)
    tokens = input.reshape(-1, input.shape[-1]).contiguous()
    return multiply(kernels(), tokens, factor).view(*input.shape[:-1], factor.rows)


def multiply(kernels: Kernels | None, tokens: Tensor, factor: Factor) -> Tensor:
    """(T, O) from tokens (T, I), by these kernels; None: by torch."""
    if kernels is None:
        return _multiply_dense(tokens, factor)
    dtype = factor_dtype(tokens, factor.values)
    tiled = kernels.form == AMX and dtype == torch.bfloat16
    if tiled or len(tokens) <= most_sparse(kernels.form, dtype):
        return kernels.multiply(tokens, factor)
    return multiply_expanded(kernels, tokens, factor)


def most_sparse(form: str, dtype: torch.dtype) -> int:
    """The most tokens that a form multiplies sparse without tiles."""
    return FEW_PAIRS if form == PAIRS and dtype == torch.bfloat16 else FEW[dtype]


def multiply_expanded(kernels: Kernels, tokens: Tensor, factor: Factor) -> Tensor:
    """The same by dense products with blocks of rows, expanded into one scratch."""
    columns = tokens.shape[1]
    length = -(-columns // COLUMNS) * COLUMNS
    groups = -(-factor.rows // ROWS)
    step = min(groups, max(1, SCRATCH // (ROWS * length)))
    dtype = factor_dtype(tokens, factor.values)
    scratch = _scratch(step * ROWS * length, dtype).view(step * ROWS, length)
    wide = tokens.to(dtype)
    output = tokens.new_empty(len(tokens), factor.rows)
    for begin in range(0, groups, step):
        end = min(begin + step, groups)
        kernels.expand_(scratch, factor, columns, begin, end)
        rows = slice(begin * ROWS, min(end * ROWS, factor.rows))
        block = scratch[: rows.stop - rows.start, :columns]
        scale, bias = (None if t is None else t[rows] for t in (factor.scale, factor.bias))
        output[:, rows] = _dense_product(wide, block, scale, bias)
    return output


def _scratch(weights: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many weights, this thread's own, that stays until more are asked for."""
    kept = getattr(_kept, "scratch", None)
    if kept is None or kept.dtype != dtype or len(kept) < weights:
        _kept.scratch = kept = torch.empty(weights, dtype=dtype)
    return kept[:weights]


def _multiply_dense(tokens: Tensor, factor: Factor) -> Tensor:
    """The same by one dense product."""
    values = _dense_values(tokens, factor)
    wide = tokens.to(values.dtype)
    return _dense_product(wide, values, factor.scale, factor.bias).to(tokens.dtype)


def _dense_product(
    wide: Tensor, values: Tensor, scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """(T, O) from tokens (T, I) and values (O, I) of one dtype; fp32 where a scale (O,) is."""
    if scale is None:
        return F.linear(wide, values, None if bias is None else bias.to(values.dtype))
    product = F.linear(wide, values).float() * scale
    return product if bias is None else product + bias


def factor_dtype(tokens: Tensor, values: Tensor) -> torch.dtype:
    """bfloat16 where both factors are exact in it (int8 codes are)."""
    wide = torch.float32 in (tokens.dtype, values.dtype)
    return torch.float32 if wide else torch.bfloat16


def forget_dense(mask: Tensor) -> None:
    """Forget the dense copy of a weight whose mask or values were written to."""
    if mask in _dense:
        del _dense[mask]


def _dense_values(tokens: Tensor, factor: Factor) -> Tensor:
    assert factor.mask is not None
    dtype = factor_dtype(tokens, factor.values)
    dense = _dense.get(factor.mask)
    if dense is None or dense.dtype != dtype:
        shape = (factor.rows, tokens.shape[1])
        dense = unpack_values(factor.mask, factor.values, shape).to(dtype)
        _dense[factor.mask] = dense
    return dense


def check_dtype(input: Tensor) -> None:
    if input.dtype not in INPUTS:
        raise ValueError(
            f"a packed linear multiplies float32 and bfloat16, not {input.dtype}; convert the "
            "model with model.bfloat16() or model.float()"
        )


def check_factor(factor: Factor, columns: int, device: torch.device) -> None:
    """Raise ValueError where a kernel would read elsewhere than in these tensors.

    device: of the input.
    """
    mask, values, offsets = factor.mask, factor.values, factor.offsets
    assert mask is not None
    assert offsets is not None
    grid = (-(-factor.rows // ROWS), -(-columns // COLUMNS), ROWS)
    if tuple(mask.shape) != grid or mask.dtype != torch.int32:
        raise ValueError(
            f"an input of {columns} columns does not fit the packed weight, whose mask is "
            f"{tuple(mask.shape)}"
        )
    if values.dtype not in VALUES.values() or len(offsets) != len(mask) + 1:
        raise ValueError("the values or the offsets of a packed weight are not what its mask needs")
    if _count_stored(offsets) + PADDING > values.numel():
        raise ValueError("a packed weight has fewer values than its mask says")
    for vector in (factor.scale, factor.bias):
        if vector is not None and (vector.dtype != torch.float32 or len(vector) != factor.rows):
            raise ValueError(f"scale and bias of a packed weight are float32 ({factor.rows},)")
    for tensor in (mask, values, offsets, factor.scale, factor.bias):
        if tensor is None:
            continue
        if tensor.device != device:
            raise ValueError(
                f"a packed weight is on {tensor.device} and its input on {device}; move the model "
                "and its inputs to one device"
            )
        if not tensor.is_contiguous():
            raise ValueError("the tensors of a packed weight are contiguous")


def _count_stored(offsets: Tensor) -> int:
    """The number of stored weights; of a tensor on a card, for which it waits, it is kept."""
    if offsets.is_cpu:
        return int(offsets[-1])
    if offsets not in _last_offset:
        _last_offset[offsets] = int(offsets[-1])
    number: int = _last_offset[offsets]
    return number

"""The operator sparsemend::fused_weight, keep * (base W + s B A), rounded once.

On a CPU a compiled kernel forms it, which reads W and the bits of the support once and writes the
result once, on CUDA a Triton kernel; elsewhere, and for shapes and dtypes that these do not take,
torch's operators.  A kernel moves, for e bytes per weight and factors of rank r,

    O I (2 e + 1/8) + 4 r (O + I)  bytes        e = 2, r = 16, 4096 x 4096: 4.16 per weight

where a product, a sum, a mask and a rounding one after another move 18 to 34.  The scale goes into
B first, so that B A needs no more than a sum; a power of two rounds nothing there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemend.method.adapter.fused.kernels import fits, kernel
from sparsemend.method.adapter.fused.on_cuda import fits_cuda, form_on_cuda
from sparsemend.method.adapter.fused.plain import form_in_strips, form_narrow

LIBRARY = torch.library.Library("sparsemend", "FRAGMENT")
LIBRARY.define(
    "fused_weight(Tensor weight, Tensor a, Tensor b, Tensor? packed_keep, float scale, float base, "
    "ScalarType wide, ScalarType dtype) -> Tensor"
)


@torch.library.impl(LIBRARY, "fused_weight", "CompositeExplicitAutograd")
def _form(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    scale: float,
    base: float,
    wide: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    check_shapes(weight, a, b, packed_keep)
    a, b = a.to(wide), b.to(wide)
    if wide.itemsize < 4:
        return form_narrow(weight, a, b, packed_keep, scale=scale, base=base).to(dtype)
    b = (b * scale).contiguous()
    if fits(weight, a, b, packed_keep, dtype) and (compiled := kernel()):
        return compiled.form_weight(weight, a, b, packed_keep, base=base, dtype=dtype)
    if fits_cuda(weight, a, b, packed_keep):
        return form_on_cuda(weight, a, b, packed_keep, base=base, dtype=dtype)
    return form_in_strips(weight, a, b, packed_keep, base=base, dtype=dtype)


def check_shapes(weight: Tensor, a: Tensor, b: Tensor, packed_keep: Tensor | None) -> None:
    """Raise ValueError where a kernel, which checks nothing, would read beside these tensors."""
    rows, columns = weight.shape
    bits = (rows, -(-columns // 8))
    if a.shape != (len(a), columns) or b.shape != (rows, len(a)):
        raise ValueError(
            f"A {tuple(a.shape)} and B {tuple(b.shape)} are no factors of a weight of "
            f"{rows} x {columns}; they are (rank, {columns}) and ({rows}, rank)"
        )
    if packed_keep is not None and (packed_keep.shape != bits or packed_keep.dtype != torch.uint8):
        raise ValueError(
            f"a support of {rows} x {columns} weights is uint8 {bits}, not {packed_keep.dtype} "
            f"{tuple(packed_keep.shape)}"
        )


@torch.library.register_fake("sparsemend::fused_weight", lib=LIBRARY)
def _(weight: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(weight.shape, dtype=rest[-1])


OPERATOR = torch.ops.sparsemend.fused_weight.default


@register_flop_formula(torch.ops.sparsemend.fused_weight)
def _flops(weight: list[int], a: list[int], *_: object, **__: object) -> int:
    """Of B A; a multiply-add is two."""
    return 2 * weight[0] * weight[1] * a[0]


def bytes_moved(rows: int, columns: int, rank: int, itemsize: int) -> int:
    """By the formula above, where weight and result have `itemsize` bytes."""
    bits = rows * (-(-columns // 8))
    return 2 * rows * columns * itemsize + bits + 4 * rank * (rows + columns)

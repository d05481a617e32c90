"""The LoRS linear as an autograd function: nothing weight-sized is kept for the backward pass.

    W_eff = keep * (W + s B A)        y = x W_eff^T + bias
    dx    = D W_eff                   W_eff is rebuilt, bit for bit, then freed (weight recompute)

With G = D^T x, the exact gradients dB = s (keep * G) A^T and dA = s B^T (keep * G) need the
weight-sized G.  LoRS puts the rank-r factor first, which drops the mask from the gradient:

    ste           dB = s D^T (x A^T)         dA = s (D B)^T x        straight-through estimate
    released      the same without s, as in the published code
    exact         through the whole G
    exact_tiled   exact, a strip of output rows of G at a time, summed in fp32

(LoRS, Hu et al. 2025, arXiv 2501.08582.)  Pure in (x, W, A, B): safe under activation
checkpointing and when a layer is called twice.  `lors_operator` is the same for torch.compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsemend.method.adapter.fused import weight as fused
from sparsemend.method.adapter.fused.plain import support_rows
from sparsemend.sparse.linear import zero_off_

GRAD_MODES = ("ste", "released", "exact", "exact_tiled")
FUSE_DTYPES = ("float32", "weight")


@dataclass(frozen=True)
class LorsSettings:
    """scale s; one of GRAD_MODES; rows of a strip; one of FUSE_DTYPES; the product's dtype.

    base: 1, or 0 for the update alone, keep * (s B A), where the weight has a product of its own.
    """

    scale: float
    grad_mode: str
    tile_rows: int
    fuse_dtype: str
    dtype: torch.dtype
    base: float = 1.0


def fused_weight(
    weight: Tensor, a: Tensor, b: Tensor, packed_keep: Tensor | None, settings: LorsSettings
) -> Tensor:
    """keep * (base W + s B A), (O, I), rounded once to settings.dtype; it has no gradient.

    packed_keep None reads the support from W != 0.
    """
    wide = weight.dtype
    if settings.fuse_dtype == "float32":
        wide = torch.promote_types(wide, torch.float32)
    scale, base = settings.scale, settings.base
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        return fused.OPERATOR(weight, a, b, packed_keep, scale, base, wide, settings.dtype)


def times(rows: Tensor, effective: Tensor, bias: Tensor | None) -> Tensor:
    """rows (T, I) effective^T + bias, (T, O), in the dtype of the first two."""
    if bias is None:
        return rows @ effective.T
    return torch.addmm(bias.to(rows.dtype), rows, effective.T)


@dataclass(frozen=True)
class Factors:
    """What a product has besides x and bias: W (O, I), A (R, I), B (O, R), packed keep or None."""

    weight: Tensor
    a: Tensor
    b: Tensor
    packed_keep: Tensor | None

    def effective(self, settings: LorsSettings) -> Tensor:
        """The fused weight."""
        return fused_weight(self.weight, self.a, self.b, self.packed_keep, settings)


def product(x: Tensor, factors: Factors, bias: Tensor | None, settings: LorsSettings) -> Tensor:
    """y (T, O) from x (.., I) of T rows."""
    with torch.autocast(x.device.type, enabled=False):
        rows = x.to(settings.dtype).flatten(0, -2)
        return times(rows, factors.effective(settings), bias)


def input_gradient(d: Tensor, x: Tensor, factors: Factors, settings: LorsSettings) -> Tensor:
    """dx, shaped as x, from d (T, O)."""
    with torch.autocast(x.device.type, enabled=False):
        effective = factors.effective(settings)
        return (d.to(settings.dtype) @ effective).view(x.shape).to(x.dtype)


def factor_gradients(
    d: Tensor, x: Tensor, factors: Factors, settings: LorsSettings
) -> tuple[Tensor, Tensor]:
    """(dA (R, I), dB (O, R)) in the factors' dtype, summed in fp32, from d (T, O) and x."""
    a, b = factors.a, factors.b
    with torch.autocast(x.device.type, enabled=False):
        d, x = d.to(settings.dtype), x.to(settings.dtype).flatten(0, -2)
        if settings.grad_mode in ("ste", "released"):
            return rank_first(x, d, a, b, settings.scale if settings.grad_mode == "ste" else 1.0)
        rows = factors.weight.shape[0]
        strip = min(settings.tile_rows, rows) if settings.grad_mode == "exact_tiled" else rows
        memory = x.new_empty(strip, x.shape[1])  # of every strip: fresh memory costs page faults
        wide = torch.promote_types(a.dtype, torch.float32)  # of the sum over strips
        da = torch.zeros_like(a, dtype=wide)
        db = torch.empty_like(b)
        for start in range(0, rows, strip):
            part = slice(start, start + strip)
            g = torch.mm(d[:, part].T, x, out=memory[: rows - start])
            g = zero_off_(g, support_rows(factors.weight, factors.packed_keep, part)).to(a.dtype)
            db[part] = settings.scale * (g @ a.T)
            da.addmm_(b[part].T.to(wide), g.to(wide), alpha=settings.scale)
        return da.to(a.dtype), db


def rank_first(x: Tensor, d: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """scale (D B)^T x and scale D^T (x A^T): two products with inner T x r, no mask."""
    db = d.T @ (x @ a.to(x.dtype).T)
    da = (d @ b.to(d.dtype)).T @ x
    return da.to(a.dtype).mul_(scale), db.to(b.dtype).mul_(scale)


def bias_gradient(d: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of d (T, O) over the rows, in fp32 at least."""
    return d.sum(dim=0, dtype=torch.promote_types(d.dtype, torch.float32)).to(dtype)


def refuse_weight_gradient(weight: Tensor) -> None:
    """Raise RuntimeError where the weight would need a gradient."""
    if weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("this linear forms no weight gradient; freeze the weight")


class LorsFunction(torch.autograd.Function):
    """apply(x (..., I), W (O, I), A (R, I), B (O, R), bias (O,) | None, packed keep | None, s).

    Layers give rows x (T, I), see `rows`.  W gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        packed_keep: Tensor | None,
        settings: LorsSettings,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b, packed_keep)
        ctx.settings = settings
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = product(x, Factors(weight, a, b, packed_keep), bias, settings)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *held = ctx.saved_tensors
        factors, settings = Factors(*held), ctx.settings
        dx = da = db = dbias = None
        d = gradient.to(settings.dtype).flatten(0, -2)
        if ctx.needs_input_grad[0]:
            dx = input_gradient(d, x, factors, settings)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            da, db = factor_gradients(d, x, factors, settings)
        if ctx.needs_input_grad[4]:
            dbias = bias_gradient(d, ctx.bias_dtype)
        return dx, None, da, db, dbias, None, None

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
checkpointing and when a layer is called twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsemend.sparse.linear import zero_off_
from sparsemend.sparse.packing import unpack

GRAD_MODES = ("ste", "released", "exact", "exact_tiled")
FUSE_DTYPES = ("float32", "weight")
STRIP_ROWS = 128  # 64 to 512 rows of 1024 inputs take the same time; all 1024 take twice that


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
    """keep * (base W + s B A), (O, I), one fused multiply-add rounded once to settings.dtype.

    packed_keep None reads the support from W != 0.
    """
    wide = weight.dtype
    if settings.fuse_dtype == "float32":
        wide = torch.promote_types(wide, torch.float32)
    a, b = a.to(wide), b.to(wide)
    # on a CPU a strip of rows stays in cache from the product to the mask
    strip = STRIP_ROWS if weight.device.type == "cpu" else weight.shape[0]
    fused = torch.empty_like(weight, dtype=settings.dtype) if strip < weight.shape[0] else None
    for start in range(0, weight.shape[0], strip):
        part = slice(start, start + strip)
        merged = weight[part].to(wide, copy=True)  # the only wide one: added to in place
        merged.addmm_(b[part], a, beta=settings.base, alpha=settings.scale)
        zero_off_(merged, _support_rows(weight, packed_keep, part))
        if fused is None:
            return merged.to(settings.dtype)
        fused[part] = merged
    assert fused is not None  # a weight has rows
    return fused


def times(rows: Tensor, effective: Tensor, bias: Tensor | None) -> Tensor:
    """rows (T, I) effective^T + bias, (T, O), in the dtype of the first two."""
    if bias is None:
        return rows @ effective.T
    return torch.addmm(bias.to(rows.dtype), rows, effective.T)


def _support_rows(weight: Tensor, packed_keep: Tensor | None, part: slice) -> Tensor:
    """The support of some output rows."""
    if packed_keep is None:
        return weight[part] != 0
    return unpack(packed_keep[part], weight.shape[1])


class LorsFunction(torch.autograd.Function):
    """apply(x (..., I), W (O, I), A (R, I), B (O, R), bias (O,) | None, packed keep | None, s).

    Layers give rows x (T, I), see `rows`.
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
        if ctx.needs_input_grad[1]:
            raise RuntimeError("LoRS forms no weight gradient; freeze the weight")
        ctx.save_for_backward(x, weight, a, b, packed_keep)
        ctx.settings = settings
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            effective = fused_weight(weight, a, b, packed_keep, settings)
            y = times(x.to(settings.dtype).flatten(0, -2), effective, bias)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, packed_keep = ctx.saved_tensors
        settings: LorsSettings = ctx.settings
        dx = da = db = dbias = None
        with torch.autocast(x.device.type, enabled=False):
            d = gradient.to(settings.dtype).flatten(0, -2)
            rows = x.to(settings.dtype).flatten(0, -2)
            if ctx.needs_input_grad[0]:
                effective = fused_weight(weight, a, b, packed_keep, settings)
                dx = (d @ effective).view(x.shape).to(x.dtype)
                del effective
            if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
                da, db = _factor_gradients(rows, d, weight, a, b, packed_keep, settings)
            if ctx.needs_input_grad[4]:
                dbias = d.sum(dim=0, dtype=torch.promote_types(d.dtype, torch.float32))
                dbias = dbias.to(ctx.bias_dtype)
        return dx, None, da, db, dbias, None, None


def _factor_gradients(
    x: Tensor,
    d: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    settings: LorsSettings,
) -> tuple[Tensor, Tensor]:
    """(dA (R, I), dB (O, R)) in the factors' dtype, summed in fp32, from x (T, I) and d (T, O)."""
    if settings.grad_mode in ("ste", "released"):
        scale = settings.scale if settings.grad_mode == "ste" else 1.0
        return rank_first(x, d, a, b, scale)
    strip = settings.tile_rows if settings.grad_mode == "exact_tiled" else weight.shape[0]
    wide = torch.promote_types(a.dtype, torch.float32)  # of the sum over strips
    da = torch.zeros_like(a, dtype=wide)
    db = torch.empty_like(b)
    for start in range(0, weight.shape[0], strip):
        part = slice(start, start + strip)
        g = d[:, part].T @ x
        g = zero_off_(g, _support_rows(weight, packed_keep, part)).to(a.dtype)
        db[part] = settings.scale * (g @ a.T)
        da.addmm_(b[part].T.to(wide), g.to(wide), alpha=settings.scale)
    return da.to(a.dtype), db


def rank_first(x: Tensor, d: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """scale (D B)^T x and scale D^T (x A^T): two products with inner T x r, no mask."""
    db = d.T @ (x @ a.to(x.dtype).T)
    da = (d @ b.to(d.dtype)).T @ x
    return da.to(a.dtype).mul_(scale), db.to(b.dtype).mul_(scale)

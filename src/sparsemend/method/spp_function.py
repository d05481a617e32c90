"""SPP's adapter product by groups of output rows, without a weight-sized tensor kept or formed.

    y = s ((p * a_g) W_g^T) * b_g      for every group g of output rows
    V_g = (p * a_g) W_g^T              H_g = (D_g * b_g) W_g
    db = s sum_t V * D    da_g = s sum_t p * H_g    dp = s sum_g a_g * H_g

Exact gradients; keeps V (T, O).  (SPP, Lu et al. 2024, arXiv 2405.16057, its memory optimisation.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class GroupedProduct(torch.autograd.Function):
    """apply(p (..., I), W (O, I), a (groups, I), b (O,), s) -> (..., O)."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = p.flatten(0, -2)
        v = rows.new_empty(rows.shape[0], weight.shape[0])
        for part, factor in _groups(weight, a.to(p.dtype)):
            v[:, part] = (rows * factor) @ weight[part].to(p.dtype).T
        ctx.save_for_backward(p, weight, a, b, v)
        ctx.scale = scale
        return (v * (scale * b).to(p.dtype)).view(*p.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        p, weight, a, b, v = ctx.saved_tensors
        rows, d = p.flatten(0, -2), gradient.flatten(0, -2)
        weighted = d * b.to(d.dtype)
        dp = torch.zeros_like(rows)
        da = torch.empty_like(a)
        for group, (part, factor) in enumerate(_groups(weight, a.to(p.dtype))):
            h = weighted[:, part] @ weight[part].to(d.dtype)
            da[group] = ctx.scale * (rows * h).sum(dim=0, dtype=a.dtype)
            dp.addcmul_(h, factor)
        db = ctx.scale * (v * d).sum(dim=0, dtype=b.dtype)
        return dp.mul_(ctx.scale).view(p.shape), None, da, db, None


def _groups(weight: Tensor, a: Tensor) -> list[tuple[slice, Tensor]]:
    """(output rows, their row of a) of every group."""
    size = weight.shape[0] // a.shape[0]
    return [(slice(g * size, (g + 1) * size), row) for g, row in enumerate(a)]

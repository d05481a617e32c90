"""`lors_function` as operators of torch, which torch.compile takes as they are.

A compiler that sees the inside of an autograd function forms W_eff once for both passes and keeps
it, 2 bytes per bf16 weight.  sparsemend::lors_linear and sparsemend::lors_gradients are closed to
it: what lies between the passes is x, which other products keep too.  Eagerly a layer calls the
function, whose inside instruments can see; both compute by the same lines.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsemend.method.adapter.lors_function import (
    Factors,
    LorsFunction,
    LorsSettings,
    bias_gradient,
    factor_gradients,
    input_gradient,
    product,
    refuse_weight_gradient,
)
from sparsemend.method.adapter.rows import by_rows

LIBRARY = torch.library.Library("sparsemend", "FRAGMENT")
FACTORS = "Tensor x, Tensor weight, Tensor a, Tensor b, Tensor? packed_keep"
SETTINGS = "float scale, str grad_mode, int tile_rows, str fuse_dtype, ScalarType dtype, float base"
LIBRARY.define(f"lors_linear({FACTORS}, Tensor? bias, {SETTINGS}) -> Tensor")
LIBRARY.define(
    f"lors_gradients(Tensor d, {FACTORS}, bool of_input, bool of_factors, {SETTINGS}) "
    "-> (Tensor, Tensor, Tensor)"
)


def lors_linear(
    input: Tensor, factors: Factors, bias: Tensor | None, settings: LorsSettings
) -> Tensor:
    """(.., O) from inputs (.., I); in autocast's dtype where that is on."""
    refuse_weight_gradient(factors.weight)
    device = input.device.type
    dtype = settings.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    weight, a, b, packed_keep = factors.weight, factors.a, factors.b, factors.packed_keep

    def multiply(rows: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            s = settings
            plain = (s.scale, s.grad_mode, s.tile_rows, s.fuse_dtype, dtype, s.base)
            return OPERATOR(rows, weight, a, b, packed_keep, bias, *plain)
        here = settings if dtype == settings.dtype else replace(settings, dtype=dtype)
        output: Tensor = LorsFunction.apply(rows, weight, a, b, bias, packed_keep, here)
        return output

    return by_rows(multiply, input)


@torch.library.impl(LIBRARY, "lors_linear", "CompositeExplicitAutograd")
def _linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    bias: Tensor | None,
    *settings: Any,
) -> Tensor:
    return product(x, Factors(weight, a, b, packed_keep), bias, LorsSettings(*settings))


@torch.library.register_fake("sparsemend::lors_linear", lib=LIBRARY)
def _(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=rest[-2])


@torch.library.impl(LIBRARY, "lors_gradients", "CompositeExplicitAutograd")
def _gradients(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    of_input: bool,
    of_factors: bool,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dA and dB, empty where they are not asked for."""
    factors, chosen = Factors(weight, a, b, packed_keep), LorsSettings(*settings)
    dx, da, db = x.new_empty(0), a.new_empty(0), b.new_empty(0)
    if of_input:
        dx = input_gradient(d, x, factors, chosen)
    if of_factors:
        da, db = factor_gradients(d, x, factors, chosen)
    return dx, da, db


@torch.library.register_fake("sparsemend::lors_gradients", lib=LIBRARY)
def _(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    of_input: bool,
    of_factors: bool,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if of_input else 0)
    da, db = (f.new_empty(f.shape if of_factors else 0) for f in (a, b))
    return dx, da, db


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, a, b, packed_keep, bias, *settings = inputs
    ctx.save_for_backward(x, weight, a, b, packed_keep)
    ctx.settings = settings
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, _, a, b, _, bias = ctx.needs_input_grad[:6]
    d = gradient.to(ctx.settings[-2])
    dx, da, db = GRADIENTS(d, *ctx.saved_tensors, x, a or b, *ctx.settings)
    dbias = bias_gradient(d, ctx.bias_dtype) if bias else None
    none = (None,) * len(ctx.settings)
    factors = (da, db) if a or b else (None, None)
    return dx if x else None, None, *factors, None, dbias, *none


torch.library.register_autograd(
    "sparsemend::lors_linear", _backward, setup_context=_save, lib=LIBRARY
)
OPERATOR = torch.ops.sparsemend.lors_linear.default
GRADIENTS = torch.ops.sparsemend.lors_gradients.default

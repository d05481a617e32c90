"""LosaLinear: gradients of the masked product, supports and ranks that move unseen."""

from __future__ import annotations

import pytest
import torch
from support.layers import EXACT, bound, random, saved_bytes, sparse_linear
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.losa.linear import LosaLinear, resize
from sparsemend.sparse.linear import SparseLinear

OUTPUTS, INPUTS, SCALE = 12, 20, 1.7
F32 = torch.float32


def layer_of(
    rank: int = 4,
    *,
    allocated: int | None = None,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    exact_base: bool = True,
    nested: bool = False,
    trained: bool = True,
) -> LosaLinear:
    settings = LorsSettings(SCALE, "exact_tiled", 5, "float32", dtype)
    base = sparse_linear(OUTPUTS, INPUTS, dtype=dtype, bias=bias)
    layer = LosaLinear(
        base,
        random(allocated or rank, INPUTS, seed=4),
        settings,
        rank=rank,
        dropout=dropout,
        exact_base=exact_base,
        nested=nested,
    )
    if trained:
        with torch.no_grad():
            layer.lora_b.copy_(random(OUTPUTS, allocated or rank, seed=5))
    return layer


def autograd_of(layer: LosaLinear, x: Tensor, outer: Tensor, dropout: float) -> list[Tensor]:
    """Output, dx, dA, dB of the plain formula, through autograd."""
    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora_a, layer.lora_b))
    x = x.detach().clone().requires_grad_()
    update = SCALE * (b[:, : layer.rank] @ a[: layer.rank]) * layer.keep
    torch.manual_seed(0)
    y = F.linear(x, layer.weight, layer.bias) + F.linear(F.dropout(x, dropout), update)
    return [y, *torch.autograd.grad(y, [x, a, b], outer)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("rank", "allocated"), [(4, 4), (3, 8)])
def test_gradients_are_those_of_autograd(dropout: float, rank: int, allocated: int) -> None:
    layer = layer_of(rank, allocated=allocated, dropout=dropout)
    x, outer = random(2, 5, INPUTS, seed=6).requires_grad_(), random(2, 5, OUTPUTS, seed=7)
    torch.manual_seed(0)
    y = layer(x)
    found = [y, *torch.autograd.grad(y, [x, layer.lora_a, layer.lora_b], outer)]
    for one, other in zip(found, autograd_of(layer, x, outer, dropout), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_gradients_pass_a_numerical_check() -> None:
    layer = layer_of(3, allocated=5)

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"lora_a": a, "lora_b": b}, (x,))

    inputs = (random(4, INPUTS, seed=6), layer.lora_a.detach(), layer.lora_b.detach())
    assert torch.autograd.gradcheck(function, tuple(t.clone().requires_grad_() for t in inputs))


def test_a_hidden_component_gets_no_gradient() -> None:
    layer = layer_of(3, allocated=8, dropout=0.2)
    layer(random(5, INPUTS, seed=6)).square().sum().backward()
    assert layer.lora_a.grad is not None
    assert layer.lora_b.grad is not None
    assert not layer.lora_a.grad[3:].any()
    assert not layer.lora_b.grad[:, 3:].any()
    assert layer.lora_a.grad[:3].all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_nothing_weight_sized_is_kept_for_the_backward_pass(dropout: float) -> None:
    """Only the dropped input and its mask, five bytes a value, at most."""
    layer, x = layer_of(dropout=dropout, dtype=F32), random(2, INPUTS, seed=6, dtype=F32)
    assert saved_bytes(layer, x) <= (5 * x.numel() if dropout else 0)
    assert 5 * x.numel() < OUTPUTS * INPUTS * 4


def test_dropout_is_on_the_update_alone_and_only_in_training() -> None:
    layer, x = layer_of(dropout=0.9), random(5, INPUTS, seed=6)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    torch.testing.assert_close(layer(x), F.linear(x, layer.effective_weight(), layer.bias), **EXACT)
    untrained = layer_of(dropout=0.9, trained=False)
    assert torch.equal(untrained(x), F.linear(x, untrained.weight, untrained.bias))


def new_support(layer: LosaLinear) -> tuple[Tensor, Tensor]:
    """An effective weight on a support that lost some entries and won others."""
    keep = layer.keep.clone()
    keep[:, ::3] = ~keep[:, ::3]
    return layer.effective_weight().detach(), keep


def test_moving_the_support_keeps_the_function_on_what_stays() -> None:
    layer = layer_of(dtype=F32)
    weight, keep = new_support(layer)
    layer.set_effective_(weight, keep)
    assert torch.equal(layer.keep, keep)
    # values of order 10, one rounding each
    torch.testing.assert_close(layer.effective_weight(), weight * keep, atol=1e-5, rtol=0)
    assert not layer.effective_weight()[~keep].any()


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_a_base_weight_whose_effective_value_stays_is_not_touched(dtype: torch.dtype) -> None:
    layer = layer_of(dtype=dtype)
    base, stays = layer.weight.clone(), layer.keep.clone()
    weight, keep = new_support(layer)
    layer.set_effective_(weight, keep)
    assert torch.equal(layer.weight[stays & keep], base[stays & keep])
    merging = layer_of(dtype=dtype, exact_base=False)
    merging.set_effective_(weight, keep)
    assert not torch.equal(merging.weight[stays & keep], base[stays & keep])


def test_a_regrown_weight_starts_at_the_value_it_was_given() -> None:
    layer = layer_of(dtype=F32)
    weight, keep = layer.effective_weight().detach().clone(), layer.keep.clone()
    row, column = (~keep).nonzero()[0].tolist()
    keep[row, column], weight[row, column] = True, 0.25
    layer.set_effective_(weight, keep)
    assert layer.effective_weight()[row, column].item() == pytest.approx(0.25, abs=1e-6)


def test_nested_a_zero_comes_back_only_with_a_value_of_its_own() -> None:
    layer = layer_of(dtype=F32, nested=True)
    weight, keep = layer.effective_weight().detach().clone(), layer.keep.clone()
    (row, column), (other_row, other_column) = (~keep).nonzero()[:2].tolist()
    weight[row, column] = 0.25
    kept_row, kept_column = keep.nonzero()[0].tolist()
    weight[kept_row, kept_column] = 0  # one that is kept may be 0
    layer.set_effective_(weight, torch.ones_like(keep))
    keep[row, column] = True
    assert torch.equal(layer.keep, keep)
    assert not layer.keep[other_row, other_column]


def test_growing_changes_nothing_before_a_step() -> None:
    layer, start = layer_of(4), random(7, INPUTS, seed=9)
    before, a, b = layer.effective_weight().clone(), layer.lora_a.clone(), layer.lora_b.clone()
    layer.set_rank_(7, start)
    assert layer.lora_a.shape == (7, INPUTS)
    assert torch.equal(layer.effective_weight(), before)
    assert torch.equal(layer.lora_a, torch.cat([a, start[4:]]))
    assert torch.equal(layer.lora_b[:, :4], b)
    assert not layer.lora_b[:, 4:].any()
    layer.requires_grad_(True).weight.requires_grad_(False)
    layer(random(5, INPUTS, seed=6)).square().sum().backward()
    assert layer.lora_b.grad is not None
    assert layer.lora_b.grad[:, 4:].any()  # and with the first step the new ones are there


def test_shrinking_folds_what_goes_into_the_base() -> None:
    layer = layer_of(4)
    before, keep = layer.effective_weight().clone(), layer.keep
    layer.set_rank_(2, random(2, INPUTS, seed=9))
    assert layer.lora_a.shape == (2, INPUTS)
    torch.testing.assert_close(layer.effective_weight(), before, **EXACT)
    assert not layer.weight[~keep].any()


def test_shrinking_a_bf16_layer_rounds_the_base_once() -> None:
    layer = layer_of(4, dtype=torch.bfloat16)
    a, b = layer.lora_a.double(), layer.lora_b.double()
    exact = (layer.weight.double() + SCALE * b[:, 2:] @ a[2:]) * layer.keep
    layer.set_rank_(2, random(2, INPUTS, seed=9))
    # of the sum of magnitudes: the products are summed in fp32
    allowed = bound(1, torch.bfloat16) * exact.abs() + 1e-5
    assert ((layer.weight.double() - exact).abs() <= allowed).all()


def test_a_cap_hides_components_and_shows_them_again() -> None:
    layer = layer_of(8, allocated=8)
    whole = layer.effective_weight().clone()
    layer.set_rank_(3, None)
    assert not torch.equal(layer.effective_weight(), whole)
    layer.set_rank_(12, None)  # beyond the cap nothing happens, as released
    assert layer.rank == 8
    assert torch.equal(layer.effective_weight(), whole)


def test_restoring_gives_the_same_bits() -> None:
    layer, other = layer_of(3, dtype=torch.bfloat16), layer_of(5, dtype=torch.bfloat16)
    other.restore_(layer.weight, layer.keep, layer.lora_a, layer.lora_b, layer.rank)
    assert torch.equal(other.effective_weight(), layer.effective_weight())
    assert other.rank == 3


def test_under_autocast_both_products_are_in_its_dtype() -> None:
    layer, x = layer_of(dropout=0.2, dtype=F32), random(3, INPUTS, seed=6, dtype=F32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert layer.eval()(x).dtype == torch.bfloat16


def test_autocast_leaves_the_update_as_it_is() -> None:
    layer = layer_of(dtype=F32)
    expected = layer.update()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.update(), expected)


def test_resizing_cuts_or_adds_zeros() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    assert resize(matrix, 2, dim=1).tolist() == [[0, 1], [3, 4]]
    assert resize(matrix, 3, dim=0).tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0]]
    assert resize(matrix, 2, dim=1).is_contiguous()


def test_it_is_a_sparse_linear_to_everyone_else() -> None:
    layer = layer_of()
    assert isinstance(layer, SparseLinear)
    assert isinstance(layer, nn.Linear)
    layer.project_()
    assert not layer.weight[~layer.keep].any()

"""SPP's three forms against each other, against plain autograd, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, method_of, pruned_model
from support.layers import EXACT, Watch, assert_within, random, sparse_linear
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from sparsemend.method.adapter.fold import fold_linear
from sparsemend.method.spp import FORMS, GroupedProduct, Spp, SppLinear
from sparsemend.sparse.linear import SparseLinear

OUTPUTS, INPUTS, GROUPS, SCALE = 12, 20, 3, 2.0
OTHERS = ["checkpointed", "group_loop"]


def spp(
    form: str, *, dtype: torch.dtype = torch.float64, dropout: float = 0.0, bias: bool = True
) -> SppLinear:
    """A layer with both factors off their start."""
    base = sparse_linear(OUTPUTS, INPUTS, dtype=dtype, bias=bias)
    start = random(GROUPS, INPUTS, seed=4)
    layer = SppLinear(base, start, scale=SCALE, form=form, dropout=dropout)
    with torch.no_grad():
        layer.spp_b.copy_(random(OUTPUTS, 1, seed=5))
    return layer


def results(layer: SppLinear, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Output and gradients of one call, its dropout drawn from one seed."""
    x = random(2, 5, INPUTS, seed=6, dtype=dtype).requires_grad_()
    torch.manual_seed(8)
    y = layer(x)
    named = {"x": x, "a": layer.spp_a, "b": layer.spp_b}
    found = torch.autograd.grad(y, list(named.values()), random(*y.shape, seed=7, dtype=dtype))
    gradients = dict(zip(named, found, strict=True))
    return {"y": y} | gradients | {"b": gradients["b"].squeeze(1)}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("form", OTHERS)
def test_all_forms_are_one_function(form: str, dropout: float) -> None:
    """Also under dropout, which each draws once, for the same entries."""
    expected = results(spp("plain", dropout=dropout))
    got = results(spp(form, dropout=dropout))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_one_token_without_further_dimensions_is_a_row(form: str) -> None:
    layer, x = spp(form), random(1, INPUTS, seed=6).requires_grad_()
    one, whole = layer(x[0]), layer(x)
    torch.testing.assert_close(one, whole[0], **EXACT)
    pair = [torch.autograd.grad(y.square().sum(), x)[0] for y in (one, whole)]
    torch.testing.assert_close(*pair, **EXACT)


@pytest.mark.parametrize("form", OTHERS)
def test_all_forms_are_one_function_in_fp32(form: str) -> None:
    """Up to the order of sums: a hundred roundings of terms of order one."""
    expected = results(spp("plain", dtype=torch.float32), dtype=torch.float32)
    got = results(spp(form, dtype=torch.float32), dtype=torch.float32)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradients_are_the_papers(form: str) -> None:
    """db_i = s sum_j a_g(i)j Z_ij and da_gj = s sum_{i in g} b_i Z_ij with Z = W * D^T x."""
    layer = spp(form)
    got = results(layer)
    x, d = random(2, 5, INPUTS, seed=6), random(2, 5, OUTPUTS, seed=7)
    z = layer.weight * (d.flatten(0, 1).T @ x.flatten(0, 1))
    group = torch.arange(OUTPUTS) // (OUTPUTS // GROUPS)
    expected_b = torch.stack([SCALE * (layer.spp_a[group[i]] @ z[i]) for i in range(OUTPUTS)])
    expected_a = torch.stack(
        [SCALE * layer.spp_b[group == g, 0] @ z[group == g] for g in range(GROUPS)]
    )
    torch.testing.assert_close(got["b"], expected_b, **EXACT)
    torch.testing.assert_close(got["a"], expected_a, **EXACT)
    torch.testing.assert_close(got["x"], d @ layer.effective_weight(), **EXACT)
    assert_forward_is_effective(layer, got["y"])


def assert_forward_is_effective(layer: SppLinear, y: Tensor) -> None:
    x = random(2, 5, INPUTS, seed=6)
    torch.testing.assert_close(y, F.linear(x, layer.effective_weight(), layer.bias), **EXACT)


def test_the_group_formulas_pass_finite_differences() -> None:
    layer = spp("group_loop")
    p = random(2, 5, INPUTS, seed=6).requires_grad_()

    def apply(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return GroupedProduct.apply(p, layer.weight, a, b, SCALE)

    assert gradcheck(apply, [p, layer.spp_a, layer.spp_b.detach().squeeze(1).requires_grad_()])


def test_the_group_formulas_form_no_weight_shaped_tensor() -> None:
    layer = spp("group_loop", bias=False)
    x = random(2, 5, INPUTS, seed=6).requires_grad_()
    with Watch((OUTPUTS, INPUTS)) as watch:
        layer(x).sum().backward()
    assert not [name for name, _, _ in watch.made if "mm" in name or "mul" in name]


def test_the_group_formulas_read_strided_gradients() -> None:
    layer = spp("group_loop")
    d = random(OUTPUTS, 5, 2, seed=7).permute(2, 1, 0)
    x = random(INPUTS, 5, 2, seed=6).permute(2, 1, 0).requires_grad_()
    expected = torch.autograd.grad(layer(x), [x, layer.spp_a, layer.spp_b], d.contiguous())
    got = torch.autograd.grad(layer(x), [x, layer.spp_a, layer.spp_b], d)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_differentiating_the_group_formulas_twice_is_refused() -> None:
    layer = spp("group_loop")
    x = random(2, 5, INPUTS, seed=6).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_a_two_by_two_layer_is_multiplied_by_hand(form: str) -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), False)
    base = SparseLinear(weight, None, torch.tensor([[True, True], [True, False]]))
    layer = SppLinear(base, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), scale=2, form=form, dropout=0)
    with torch.no_grad():
        layer.spp_b.copy_(torch.tensor([[0.5], [-1.0]]))
    # row 0: 1 (1 + 2*1*.5), 2 (1 + 2*2*.5); row 1: 3 (1 - 2*3)
    expected = torch.tensor([[2.0, 6.0], [-15.0, 0.0]])
    assert torch.equal(layer.effective_weight(), expected)
    assert torch.equal(layer(torch.eye(2)).T, expected)
    assert torch.equal(fold_linear(layer).weight, expected)


def test_a_group_is_a_run_of_neighbouring_rows() -> None:
    """Four rows in two groups: rows 0 and 1 share the first row of a."""
    base = SparseLinear(nn.Parameter(torch.ones(4, 1), False), None, torch.ones(4, 1).bool())
    layer = SppLinear(base, torch.tensor([[1.0], [2.0]]), scale=1, form="plain", dropout=0)
    with torch.no_grad():
        layer.spp_b.fill_(1)
    assert layer.effective_weight().flatten().tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("form", FORMS)
def test_dropout_leaves_the_output_the_same_in_expectation(form: str) -> None:
    """The mean over 4000 draws, within five standard errors of each entry."""
    layer, x = spp(form, dropout=0.3), random(2, INPUTS, seed=6)
    expected = layer.eval()(x)
    layer.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = layer(x.repeat(4000, 1)).view(4000, 2, OUTPUTS)
    error = draws.std(dim=0) / 4000**0.5
    assert ((draws.mean(dim=0) - expected).abs() <= 5 * error).all()
    assert (error > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_base_product_is_not_dropped_out(form: str) -> None:
    layer, x = spp(form, dropout=0.9), random(2, INPUTS, seed=6)
    with torch.no_grad():
        layer.spp_b.zero_()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("form", FORMS)
def test_bf16_values_and_gradients_are_close_and_factors_get_fp32(form: str) -> None:
    """Three operands, their products, s b, and the sum of two products: eight roundings at most."""
    layer = spp(form, dtype=torch.bfloat16)
    got = results(layer, dtype=torch.bfloat16)
    assert got["a"].dtype == got["b"].dtype == torch.float32
    assert got["y"].dtype == got["x"].dtype == torch.bfloat16
    x = random(2, 5, INPUTS, seed=6, dtype=torch.bfloat16).double().flatten(0, 1)
    d = random(2, 5, OUTPUTS, seed=7, dtype=torch.bfloat16).double().flatten(0, 1)
    w, a, b = (t.detach().double() for t in (layer.weight, layer.spp_a, layer.spp_b))
    full = a.repeat_interleave(OUTPUTS // GROUPS, dim=0)
    z, scale = w * (d.T @ x), SCALE
    size = w.abs() * (d.abs().T @ x.abs())
    in_groups = (GROUPS, OUTPUTS // GROUPS, INPUTS)
    exact = {
        "y": x @ (w * (1 + scale * full * b)).T + layer.bias.double(),
        "x": d @ (w * (1 + scale * full * b)),
        "b": scale * (full * z).sum(1),
        "a": scale * (b * z).view(in_groups).sum(1),
    }
    magnitude = {
        "y": x.abs() @ (w * (1 + scale * full.abs() * b.abs())).abs().T + layer.bias.abs(),
        "x": d.abs() @ (w.abs() * (1 + scale * full.abs() * b.abs())),
        "b": scale * (full.abs() * size).sum(1),
        "a": scale * (b.abs() * size).view(in_groups).sum(1),
    }
    for name in exact:
        flat = got[name].reshape(exact[name].shape)
        assert_within(flat, exact[name], magnitude[name], roundings=8)


@pytest.mark.parametrize("form", FORMS)
def test_under_autocast_all_forms_answer_in_bf16(form: str) -> None:
    layer = spp(form, dtype=torch.float32)
    x = random(2, 5, INPUTS, seed=6, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == layer.spp_a.grad.dtype == layer.spp_b.grad.dtype == torch.float32
    full = layer.spp_a.abs().repeat_interleave(OUTPUTS // GROUPS, dim=0)
    size = layer.weight.abs() * (1 + SCALE * full * layer.spp_b.abs())
    size = F.linear(x.abs(), size, layer.bias.abs()).detach()
    assert_within(y, F.linear(x, layer.effective_weight(), layer.bias), size, roundings=8)


def test_a_zero_stays_zero_whatever_the_factors_are() -> None:
    layer = spp("plain", dtype=torch.bfloat16)
    assert not layer.effective_weight()[~layer.keep].any()


def test_there_are_groups_times_inputs_plus_outputs_to_train(tmp_path: Path) -> None:
    method = method_of("spp")
    assert isinstance(method, Spp)
    model = pruned_model()
    method.attach(model, bench_for(tmp_path))
    layers = [m for m in model.modules() if isinstance(m, SppLinear)]
    expected = sum(method.groups * m.in_features + m.out_features for m in layers)
    assert sum(p.numel() for p in method.trainable(model)) == expected
    assert not any(m.spp_b.any() for m in layers)
    assert all((m.spp_a.abs() <= m.in_features**-0.5).all() for m in layers)


def test_both_factors_decay_as_in_the_released_code(tmp_path: Path) -> None:
    method, model = method_of("spp"), pruned_model()
    assert isinstance(method, Spp)
    method.attach(model, bench_for(tmp_path))
    method.free_trainable(model)
    (group,) = method.make_optimizer(model).param_groups
    assert group["weight_decay"] == method.weight_decay == 0.001
    assert len(group["params"]) == len(method.trainable(model))


def test_outputs_that_the_groups_do_not_divide_are_refused_by_name() -> None:
    method = Spp(**{**vars(method_of("spp")), "groups": 5})
    wanted = r"method\.groups=5 does not divide the 32 outputs of model\.layers\.0\.self_attn\.q"
    with pytest.raises(ValueError, match=wanted):
        method.check_model(pruned_model(), None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("groups", 0, "groups 0 is below 1"),
        ("scale", 0.0, "scale 0.0 is not above 0"),
        ("dropout", 1.0, r"dropout 1.0 is not in \[0, 1\)"),
        ("form", "loop", "form 'loop' is not one of"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, value: object, message: str) -> None:
    settings = {**vars(method_of("spp")), name: value}
    with pytest.raises(ValueError, match=f"method.{message}"):
        Spp(**settings)

from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, logits, method_of, pruned_model
from support.layers import EXACT, assert_within, random, sparse_linear
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.method.adapter.fold import fold_linear
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear, TwoGemmLinear
from sparsemend.method.masked_lora import MaskedLora
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.logits import next_token_loss

KEEP = torch.tensor([[True, False, True], [False, True, True]])


def adapter(scale: float = 2.0, dtype: torch.dtype = torch.float32) -> MaskedLoraLinear:
    weight = nn.Parameter(torch.tensor([[1.0, 9.0, 2.0], [9.0, 3.0, 4.0]], dtype=dtype))
    layer = MaskedLoraLinear(SparseLinear(weight, None, KEEP), torch.zeros(1, 3), scale)
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.lora_b.copy_(torch.tensor([[0.5], [-1.0]]))
    return layer


def test_the_effective_weight_is_the_formula_by_hand() -> None:
    # 2 * B A = [[1, 2, 3], [-2, -4, -6]], masked, plus the kept weights
    expected = torch.tensor([[2.0, 0.0, 5.0], [0.0, -1.0, -2.0]])
    assert torch.equal(adapter().effective_weight(), expected)


def test_gradients_are_those_of_the_masked_product() -> None:
    """dB = s (M * G) A^T and dA = s B^T (M * G) with G = D^T X (PERP, SQFT)."""
    layer = adapter().double()
    layer.weight.requires_grad_(False)
    layer.lora_a.requires_grad_(True)
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outer = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (layer(inputs) * outer).sum().backward()
    masked = (outer.T @ inputs) * KEEP
    torch.testing.assert_close(layer.lora_b.grad, 2 * masked @ layer.lora_a.T)
    torch.testing.assert_close(layer.lora_a.grad, 2 * layer.lora_b.T @ masked)


def test_folding_a_bf16_layer_rounds_once_and_keeps_the_zeros() -> None:
    layer = adapter(dtype=torch.bfloat16)
    result = fold_linear(layer)
    assert result.weight.dtype == torch.bfloat16
    assert torch.equal(result.weight, layer.effective_weight())
    assert not result.weight[~KEEP].any()


def test_moving_the_support_under_the_adapter_gives_the_weight_asked_for() -> None:
    layer = adapter()
    wanted = torch.tensor([[1.0, -1.0, 0.5], [2.0, 3.0, -4.0]])
    keep = ~KEEP
    layer.set_effective_(wanted, keep)
    torch.testing.assert_close(layer.effective_weight(), wanted * keep)
    assert not layer.effective_weight()[~keep].any()


def test_the_rank_bounds_what_is_trained(tmp_path: Path) -> None:
    method = method_of("masked_lora")
    assert isinstance(method, MaskedLora)
    model = pruned_model()
    method.attach(model, bench_for(tmp_path))
    expected = sum(2 * (m.in_features + m.out_features) for _, m in sparse_linears(model))
    assert sum(p.numel() for p in method.trainable(model)) == expected


def test_a_kept_weight_that_cancels_to_zero_stays_on_the_support() -> None:
    layer = adapter()
    with torch.no_grad():
        layer.weight[0, 0] = -1.0  # update there is +1
    result = fold_linear(layer)
    assert result.weight[0, 0] == 0
    assert bool(result.keep[0, 0])


def test_a_rank_below_one_is_refused() -> None:
    settings = {**vars(method_of("masked_lora")), "rank": 0}
    with pytest.raises(ValueError, match=r"method\.rank 0 is below 1"):
        MaskedLora(**settings)


def test_adapters_are_gone_after_repair(tmp_path: Path) -> None:
    model = pruned_model()
    before: Tensor = logits(model)
    method_of("masked_lora").repair(model, bench_for(tmp_path))
    assert not any(isinstance(m, MaskedLoraLinear) for m in model.modules())
    assert not torch.equal(logits(model), before)


OUTPUTS, INPUTS, RANK, SCALE = 12, 20, 3, 1.7


def both_forms(
    dtype: torch.dtype = torch.float64, *, dropout: float = 0.0
) -> tuple[MaskedLoraLinear, TwoGemmLinear]:
    start = random(RANK, INPUTS, seed=4)
    merge_first = MaskedLoraLinear(
        sparse_linear(OUTPUTS, INPUTS, dtype=dtype, bias=True), start, SCALE
    )
    two_gemm = TwoGemmLinear(
        sparse_linear(OUTPUTS, INPUTS, dtype=dtype, bias=True), start, SCALE, dropout
    )
    with torch.no_grad():
        for layer in (merge_first, two_gemm):
            layer.lora_b.copy_(random(OUTPUTS, RANK, seed=5))
    return merge_first, two_gemm


def results(layer: MaskedLoraLinear) -> list[Tensor]:
    """Output, dx, dA, dB."""
    x = random(2, 5, INPUTS, seed=6).requires_grad_()
    y = layer(x)
    outer = random(*y.shape, seed=7)
    return [y, *torch.autograd.grad(y, [x, layer.lora_a, layer.lora_b], outer)]


def test_both_forms_are_one_function() -> None:
    merge_first, two_gemm = both_forms()
    for one, other in zip(results(merge_first), results(two_gemm), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_both_forms_fold_to_the_same_bits() -> None:
    merge_first, two_gemm = both_forms(torch.bfloat16)
    assert torch.equal(fold_linear(merge_first).weight, fold_linear(two_gemm).weight)


def test_an_update_below_the_spacing_of_bf16_survives_in_two_gemm_only() -> None:
    merge_first, two_gemm = both_forms(torch.bfloat16)
    x = torch.eye(INPUTS, dtype=torch.bfloat16)
    for layer in (merge_first, two_gemm):
        with torch.no_grad():
            layer.lora_b.mul_(1e-6)
            layer.weight.add_(layer.keep)  # near one, where bf16 is spaced by 1/128
            layer.bias.zero_()
    start = F.linear(x, merge_first.weight)
    assert torch.equal(merge_first(x), start)
    update = two_gemm.masked_update()
    assert update.any()
    with torch.no_grad():
        two_gemm.weight.zero_()
    assert_within(two_gemm(x).T, update, update.abs(), roundings=1)


def test_dropout_is_on_the_update_only() -> None:
    _, layer = both_forms(dropout=0.9)
    x = random(5, INPUTS, seed=6)
    assert not torch.equal(layer(x), layer(x))
    with torch.no_grad():
        layer.lora_b.zero_()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_dropout_leaves_the_output_the_same_in_expectation() -> None:
    """The mean over 4000 draws, within five standard errors of each entry."""
    _, layer = both_forms(dropout=0.3)
    x = random(2, INPUTS, seed=6)
    expected = layer.eval()(x)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = layer.train()(x.repeat(4000, 1)).view(4000, 2, OUTPUTS)
    error = draws.std(dim=0) / 4000**0.5
    assert ((draws.mean(dim=0) - expected).abs() <= 5 * error).all()


def test_dropout_cannot_be_asked_of_a_merged_weight() -> None:
    settings = {**vars(method_of("masked_lora")), "dropout": 0.1}
    with pytest.raises(ValueError, match=r"method\.dropout 0\.1 .* use method\.form=two_gemm"):
        MaskedLora(**settings)
    assert MaskedLora(**{**settings, "form": "two_gemm"}).dropout == 0.1


def test_the_scale_rules_are_alpha_over_rank_and_over_its_root(tmp_path: Path) -> None:
    for rule, expected in (("alpha_over_r", 6 / 4), ("alpha_over_sqrt_r", 6 / 2)):
        settings = {"rank": 4, "alpha": 6.0, "scale_rule": rule}
        model = pruned_model()
        method = MaskedLora(**{**vars(method_of("masked_lora")), **settings})
        method.attach(model, bench_for(tmp_path))
        layers = [m for m in model.modules() if isinstance(m, MaskedLoraLinear)]
        assert {layer.scale for layer in layers} == {expected}


def test_a_starts_uniform_below_one_over_root_inputs_and_b_at_zero(tmp_path: Path) -> None:
    """The second moment of so many entries (thousands) is a third of the bound's within 10%."""
    model = pruned_model()
    method = MaskedLora(**{**vars(method_of("masked_lora")), "rank": 16})
    method.attach(model, bench_for(tmp_path))
    layers = [m for m in model.modules() if isinstance(m, MaskedLoraLinear)]
    entries = torch.cat([(m.lora_a * m.in_features**0.5).flatten() for m in layers])
    assert entries.abs().max() <= 1
    assert entries.square().mean().item() == pytest.approx(1 / 3, rel=0.1)
    assert not any(layer.lora_b.any() for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_layer_multiplies_by_what_it_folds_to(dtype: torch.dtype) -> None:
    base = sparse_linear(12, 20, dtype=dtype)
    layer = MaskedLoraLinear(base, random(3, 20, seed=4), 1.7)
    with torch.no_grad():
        layer.lora_b.copy_(random(12, 3, seed=5))
    folded, x = fold_linear(layer), random(5, 20, seed=6, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.effective_weight(), folded.weight)
        assert torch.equal(layer(x), folded(x))
        rounded = layer.lora_b @ layer.lora_a
    assert rounded.dtype == torch.bfloat16  # what an update under autocast would be


@pytest.mark.parametrize(
    ("name", "form", "dtype", "reported"),
    [
        ("masked_lora", "two_gemm", torch.bfloat16, True),
        ("masked_lora", "merge_first", torch.bfloat16, False),
        ("masked_lora", "two_gemm", torch.float32, False),
        ("spp", "group_loop", torch.bfloat16, True),
    ],
)
def test_a_method_that_rounds_elsewhere_than_its_fold_reports_the_loss_of_the_folded_model(
    name: str, form: str, dtype: torch.dtype, *, reported: bool, tmp_path: Path
) -> None:
    model, bench = pruned_model().to(dtype), bench_for(tmp_path)
    report = method_of(name, f"method.form={form}").repair(model, bench)
    assert ("validation/loss/folded" in report) == reported
    if reported:
        tokens = bench.validation.tokens
        with torch.no_grad():
            expected = next_token_loss(model, tokens, tokens)
        # batches of two windows and of four round bf16 products alike
        assert report["validation/loss/folded"] == pytest.approx(float(expected), rel=1e-4)

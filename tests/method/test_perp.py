"""PERP: which parameters train, in which precision, and ScaleLoRA's rank and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, logits, method_of, pruned_model
from support.layers import EXACT, UNIT, random, sparse_linear
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from sparsemend.method.adapter.fold import fold_linear
from sparsemend.method.adapter.head import head_factors
from sparsemend.method.perp import Perp, ScaleLoraLinear
from sparsemend.run.export import to_dense_
from sparsemend.sparse.linear import SparseLinear, sparse_linears

OUTPUTS, INPUTS, RANK = 12, 20, 3


def perp(*overrides: str) -> Perp:
    method = method_of("perp", *overrides)
    assert isinstance(method, Perp)
    return method


def trained_names(method: Perp, model: nn.Module, out: Path) -> set[str]:
    method.attach(model, bench_for(out))
    chosen = {id(p) for p in method.trainable(model)}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


def test_of_llama_the_norms_train(tmp_path: Path) -> None:
    model = pruned_model()
    expected = {n for n, _ in model.named_parameters() if "norm" in n}
    assert trained_names(perp(), model, tmp_path) == expected
    assert len(expected) == 7  # two per block, and the last


def test_of_opt_the_biases_and_layer_norms_train(tmp_path: Path) -> None:
    model = pruned_model(family="opt")
    norms = {n for n, _ in model.named_parameters() if "layer_norm" in n}
    biases = {n for n, _ in model.named_parameters() if n.endswith(".bias")}
    assert biases & norms  # those of layer norms are both
    assert trained_names(perp(), model, tmp_path / "both") == norms | biases
    only = perp("method.trained=[biases]"), perp("method.trained=[norms]")
    assert trained_names(only[0], model, tmp_path / "biases") == biases
    assert trained_names(only[1], model, tmp_path / "norms") == norms


def test_scale_lora_trains_its_factors_besides(tmp_path: Path) -> None:
    model = pruned_model()
    names = trained_names(perp("method.trained=[norms,scale_lora]"), model, tmp_path)
    suffixes = {name.rpartition(".")[2] for name in names if "norm" not in name}
    assert suffixes == {"scale_a", "scale_b"}
    assert len([n for n in names if "scale_" in n]) == 2 * len(list(sparse_linears(model)))


def test_a_model_without_biases_is_refused_when_only_they_train() -> None:
    method = perp("method.trained=[biases]")
    with pytest.raises(ValueError, match="finds no bias or norm to train in this model"):
        method.check_model(pruned_model(), None)
    method.check_model(pruned_model(family="opt"), None)


def test_switching_everything_off_is_refused() -> None:
    for trained, wanted in (
        ([], "method.trained is empty"),
        (["norms", "head"], "method.trained 'head' is not one of: biases, norms, lm_head"),
        (["mask_lora", "scale_lora"], "a linear takes one of them"),
    ):
        with pytest.raises(ValueError, match=wanted):
            Perp(**{**vars(method_of("perp")), "trained": trained})


RELEASED = "method.trained=[biases,norms,lm_head,mask_lora]"


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_released_set_is_biases_norms_head_and_masked_updates(
    family: str, tmp_path: Path
) -> None:
    model = pruned_model(family=family)
    vectors = {n for n, p in model.named_parameters() if p.ndim == 1}
    linears = {n for n, _ in sparse_linears(model)} | {"lm_head"}
    factors = {f"{name}.lora_{letter}" for name in linears for letter in "ab"}
    assert trained_names(perp(RELEASED), model, tmp_path) == vectors | factors


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_heads_update_folds_into_a_head_of_its_own(family: str, tmp_path: Path) -> None:
    """OPT's head is its embedding, which stays as it was."""
    model = pruned_model(family=family)
    supports = {name: linear.keep.clone() for name, linear in sparse_linears(model)}
    embedding = model.get_input_embeddings().weight.clone()
    method = perp(RELEASED)
    method.attach(model, bench_for(tmp_path))
    with torch.no_grad():
        for factor in head_factors(model):
            factor.normal_(generator=torch.Generator().manual_seed(1))
    open_logits = logits(model)
    method.fold(model)
    head = model.get_output_embeddings()
    assert type(head) is nn.Linear
    torch.testing.assert_close(logits(model), open_logits, rtol=1e-5, atol=1e-4)
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert not torch.equal(head.weight, embedding)
    for name, linear in sparse_linears(model):
        assert torch.equal(linear.keep, supports[name])
    folded = logits(model)
    to_dense_(model).save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not again.config.tie_word_embeddings
    assert torch.equal(logits(again), folded)


def test_a_rank_that_the_head_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.rank=33 exceeds .* of the output head"):
        perp("method.trained=[lm_head]", "method.rank=33").check_model(pruned_model(), None)


def test_a_rank_that_no_linear_has_is_refused_by_name() -> None:
    settings = {**vars(perp("method.trained=[scale_lora]")), "rank": 17}
    wanted = r"method.rank=17 exceeds .* = 16 of model\.layers\.0\.self_attn\.k_proj"
    with pytest.raises(ValueError, match=wanted):
        Perp(**settings).check_model(pruned_model(), None)


VECTORS = pytest.mark.parametrize("family", ["llama", "opt"])


@VECTORS
def test_a_bf16_model_trains_fp32_originals(family: str, tmp_path: Path) -> None:
    model = pruned_model(family=family).to(torch.bfloat16)
    before = logits(model)
    method = perp()
    method.attach(model, bench_for(tmp_path))
    assert torch.equal(logits(model), before)
    trained = method.trainable(model)
    assert {p.dtype for p in trained} == {torch.float32}
    model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False).logits.float().sum().backward()
    # OPT's key bias moves all scores of a softmax alike; its gradient is zero or rounding
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


@VECTORS
def test_fp32_originals_gather_steps_that_bf16_would_round_away(
    family: str, tmp_path: Path
) -> None:
    model = pruned_model(family=family).to(torch.bfloat16)
    method = perp()
    method.attach(model, bench_for(tmp_path))
    small = 0.1 * UNIT[torch.bfloat16]  # of one: far below half a spacing
    norm = next(p for p in method.trainable(model) if torch.equal(p, torch.ones_like(p)))
    with torch.no_grad():
        for _ in range(25):  # to 1 + 2.5 units, nearest to 1 + 2
            norm.add_(small)
    method.fold(model)
    vectors = [p for p in model.parameters() if p.ndim == 1]
    assert any(torch.all(p == 1 + 2 * UNIT[torch.bfloat16]) for p in vectors)


@VECTORS
def test_after_repair_a_bf16_model_is_as_it_was_made(family: str, tmp_path: Path) -> None:
    model = pruned_model(family=family).to(torch.bfloat16)
    keys, values = list(model.state_dict()), {n: v.clone() for n, v in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    perp().repair(model, bench_for(tmp_path))
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == names  # no buffer in its place
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, values[n])}
    vectors = {n for n, p in model.named_parameters() if p.ndim == 1}
    assert moved
    assert moved <= vectors
    assert all(type(linear) is SparseLinear for _, linear in sparse_linears(model))


def scale_lora(
    init: str = "released", *, dtype: torch.dtype = torch.float64, moved: bool = False
) -> ScaleLoraLinear:
    noise = {"released": 0.0, "perturbed": 1e-2}[init]
    base = sparse_linear(OUTPUTS, INPUTS, dtype=dtype)
    layer = ScaleLoraLinear(base, RANK, noise, torch.Generator().manual_seed(1))
    if moved:
        with torch.no_grad():
            layer.scale_a.add_(random(RANK, INPUTS, seed=2))
            layer.scale_b.add_(random(OUTPUTS, RANK, seed=3))
    return layer


def test_the_factors_start_at_one_over_root_rank() -> None:
    layer = scale_lora()
    root = torch.tensor(RANK**-0.5, dtype=torch.float32).double()  # drawn in fp32
    for factor in (layer.scale_a, layer.scale_b):
        torch.testing.assert_close(factor.detach(), root.expand(factor.shape), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("init", "alike"), [("released", True), ("perturbed", False)])
def test_only_the_perturbed_start_tells_components_apart(
    init: str, alike: bool, tmp_path: Path
) -> None:
    model = pruned_model()
    method = perp("method.trained=[norms,scale_lora]", f"method.init={init}")
    method.attach(model, bench_for(tmp_path))
    for _, layer in sparse_linears(model):
        assert isinstance(layer, ScaleLoraLinear)
        assert torch.equal(layer.scale_a[0], layer.scale_a[1]) == alike
        assert torch.equal(layer.scale_b[:, 0], layer.scale_b[:, 1]) == alike


def test_the_perturbation_is_a_hundredth() -> None:
    """96 entries: a standard deviation is within 30 percent at four standard errors."""
    layer = scale_lora("perturbed")
    entries = torch.cat([layer.scale_a.flatten(), layer.scale_b.flatten()]) * RANK**0.5 - 1
    assert entries.std().item() == pytest.approx(1e-2, rel=0.3)


@pytest.mark.parametrize("init", ["released", "perturbed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_weight_to_the_bit(init: str, dtype: torch.dtype) -> None:
    layer = scale_lora(init, dtype=dtype)
    assert torch.equal(layer.effective_weight(), layer.weight)


def test_the_gradients_are_those_of_the_multiplied_weight() -> None:
    """dB = (W * G) A^T, dA = B^T (W * G), dx = D W_eff with G = D^T x."""
    layer = scale_lora(moved=True)
    x, d = random(5, INPUTS, seed=6).requires_grad_(), random(5, OUTPUTS, seed=7)
    layer(x).backward(d)
    g = layer.weight * (d.T @ x.detach())
    torch.testing.assert_close(layer.scale_b.grad, g @ layer.scale_a.T, **EXACT)
    torch.testing.assert_close(layer.scale_a.grad, layer.scale_b.T @ g, **EXACT)
    torch.testing.assert_close(x.grad, d @ layer.effective_weight(), **EXACT)


def test_the_effective_weight_is_the_product_by_hand() -> None:
    base = SparseLinear(
        nn.Parameter(torch.tensor([[2.0, 3.0]]), False), None, torch.tensor([[True, False]])
    )
    layer = ScaleLoraLinear(base, 1, 0.0, torch.Generator())
    with torch.no_grad():
        layer.scale_a.copy_(torch.tensor([[2.0, 5.0]]))
        layer.scale_b.copy_(torch.tensor([[-1.5]]))
    # released: W * (B A)
    assert layer.effective_weight().tolist() == [[-6.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_multiplier_revives_a_zero(dtype: torch.dtype) -> None:
    layer = scale_lora(dtype=dtype, moved=True)
    assert not layer.effective_weight()[~layer.keep].any()
    assert torch.equal(fold_linear(layer).weight, layer.effective_weight())


def test_autocast_does_not_round_the_multiplier() -> None:
    """Steps of 1/1024 from one, which bf16 cannot tell from it."""
    layer = scale_lora(dtype=torch.float32)
    with torch.no_grad():
        layer.scale_a.mul_(1 + 2**-10)
    plain = layer.effective_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.effective_weight(), plain)
    assert not torch.equal(plain, layer.weight)


def second_to_first(layer: ScaleLoraLinear, steps: int = 1000) -> float:
    """Ratio of BA's two largest singular values after so many AdamW steps on a regression."""
    x, wanted = random(64, INPUTS, seed=6), random(64, OUTPUTS, seed=7)
    optimizer = AdamW([layer.scale_a, layer.scale_b], lr=1e-2, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(layer(x), wanted).backward()
        optimizer.step()
    values = torch.linalg.svdvals((layer.scale_b @ layer.scale_a).detach())
    assert not torch.allclose(layer.scale_a, layer.start_a, atol=0.1)
    return float(values[1] / values[0])


def test_the_released_start_never_leaves_rank_one() -> None:
    """Equal components with equal gradients; fp64 sums differ by their order only."""
    assert second_to_first(scale_lora("released")) < 1e-10


def test_the_perturbed_start_leaves_rank_one() -> None:
    """From 3e-5, the noise squared, as components grow apart."""
    assert second_to_first(scale_lora("perturbed")) > 0.1


@pytest.mark.parametrize("init", ["released", "perturbed"])
def test_equal_seeds_start_alike(init: str) -> None:
    one, other = scale_lora(init), scale_lora(init)
    assert torch.equal(one.scale_a, other.scale_a)
    assert torch.equal(one.scale_b, other.scale_b)


def test_a_new_support_restarts_the_multiplier() -> None:
    layer = scale_lora(moved=True)
    wanted: Tensor = random(OUTPUTS, INPUTS, seed=8)
    layer.set_effective_(wanted, ~layer.keep)
    assert torch.equal(layer.effective_weight(), wanted * layer.keep)

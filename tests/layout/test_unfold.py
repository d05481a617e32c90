"""Weights that a family stores otherwise, as nn.Linear and back."""

from __future__ import annotations

import re
import weakref

import pytest
import torch
from support.layouts import LAYOUTS, layout_model
from support.tiers import slow_but_for
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import check_blocks, prunable_linears
from sparsemend.layout import unfold
from sparsemend.layout.experts import RoutedExperts
from sparsemend.layout.fused import Unfolded
from sparsemend.layout.unfold import fold_, folded_tensors, unfold_

FAMILIES = slow_but_for(LAYOUTS, ["mixtral", "gpt_oss", "llama4_text", "jetmoe", "gpt2"])
# one product over (E, I, O) tensors sums in another order than one over their transpose
ULPS = {"llama4_text": 16, "dbrx": 16, "gpt_oss": 4}


def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_unfolding_keeps_the_logits_and_folding_every_bit(family: str, tokens: Tensor) -> None:
    model = layout_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    wanted = logits(model, tokens)
    unfold_(model)
    check_blocks(model)
    assert [type(module) for module in model.modules()] != kinds
    error = (logits(model, tokens) - wanted).abs().max()
    assert error <= ULPS.get(family, 0) * torch.finfo(torch.float32).eps * wanted.abs().max()
    fold_(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(logits(model, tokens), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYOUTS)
def test_in_bf16_sums_over_experts_are_rounded_once(family: str, tokens: Tensor) -> None:
    """The class's own forward rounds after each expert where routing weights are fp32."""
    model = layout_model(family, dtype=torch.bfloat16)
    wanted = logits(model, tokens)
    unfold_(model)
    error = (logits(model, tokens) - wanted).abs().max()
    assert error <= 4 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()


@pytest.mark.parametrize("family", ["gpt_oss", "gpt2"])
def test_tensors_in_the_place_of_weights_fold_as_the_weights_do(family: str) -> None:
    model = layout_model(family)
    before = model.state_dict()
    unfold_(model)
    folded = folded_tensors(model, model.state_dict())
    assert folded.keys() == before.keys()
    assert all(torch.equal(folded[name], before[name]) for name in before)


def test_an_unfolded_model_is_left_as_it_is() -> None:
    model = layout_model("mixtral")
    unfold_(model)
    modules = list(model.modules())
    unfold_(model)
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))


def test_an_expert_is_a_linear_per_projection_with_the_rows_of_the_fused_tensor() -> None:
    model = layout_model("gpt_oss")
    layer = "model.layers.0.mlp.experts"
    fused = model.get_submodule(layer)
    gate_up, bias = fused.gate_up_proj[2].clone(), fused.gate_up_proj_bias[2].clone()
    unfold_(model)
    gate, up = (prunable_linears(model)[f"{layer}.2.{name}"] for name in ("gate_proj", "up_proj"))
    assert type(gate) is nn.Linear
    assert torch.equal(gate.weight, gate_up[:, 0::2].t())  # interleaved, inputs first
    assert torch.equal(up.weight, gate_up[:, 1::2].t())
    assert torch.equal(up.bias, bias[1::2])


def test_an_expert_that_no_token_chose_is_not_called_without_gradients() -> None:
    model = layout_model("mixtral")
    unfold_(model)
    experts = next(m for m in model.modules() if isinstance(m, RoutedExperts))
    called = []
    for number in range(4):
        experts.get_submodule(f"{number}.up_proj").register_forward_hook(
            lambda *_, number=number: called.append(number)
        )
    chosen = torch.tensor([[3, 1], [1, 3], [1, 4]])  # 4: no expert has this number
    with torch.no_grad():
        experts(torch.randn(3, 32), chosen, torch.rand(3, 2))
    assert called == [1, 3]


@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "jetmoe"])
def test_an_expert_that_no_token_chose_has_a_gradient_of_zeros(family: str, tokens: Tensor) -> None:
    """As the fused tensor has there."""
    model = layout_model(family)
    model(input_ids=tokens[:1, :3], use_cache=False).logits.square().sum().backward()
    fused = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    unfold_(model)
    model(input_ids=tokens[:1, :3], use_cache=False).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any(not gradient.any() for gradient in gradients.values())
    folded = folded_tensors(model, gradients)
    assert folded.keys() == fused.keys()
    for name, gradient in fused.items():
        torch.testing.assert_close(folded[name], gradient, rtol=1e-4, atol=1e-4)


def test_unfolding_draws_no_random_number() -> None:
    model = layout_model("gpt2")
    state = torch.get_rng_state()
    unfold_(model)
    fold_(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("family", "taking", "left"),
    [("mixtral", "linears_in", [4, 2]), ("gpt2", "_linear", list(range(8, 0, -1)))],
)
def test_unfolding_holds_the_tensors_of_one_module_twice(
    family: str, taking: str, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = layout_model(family)
    names = r"experts\.|c_\w+\.weight"
    stored = [weakref.ref(p) for n, p in model.named_parameters() if re.search(names, n)]
    take, seen = getattr(unfold, taking), []

    def watch(module: nn.Module) -> nn.Module | None:
        count = sum(parameter() is not None for parameter in stored)
        linears = take(module)
        if linears is not None:
            seen.append(count)
        return linears

    monkeypatch.setattr(unfold, taking, watch)
    unfold.unfold_(model)
    assert seen == left


def test_folding_holds_the_linears_of_one_module_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layout_model("mixtral")
    unfold.unfold_(model)
    stored = [weakref.ref(p) for n, p in model.named_parameters() if "experts" in n]
    fold, seen = Unfolded.fold, []

    def watch(experts: Unfolded) -> nn.Module:
        seen.append(sum(parameter() is not None for parameter in stored))
        return fold(experts)

    monkeypatch.setattr(Unfolded, "fold", watch)
    unfold.fold_(model)
    assert seen == [2 * 12, 12]


def test_an_unfolded_module_still_says_the_shape_of_its_fused_tensor() -> None:
    model = layout_model("mixtral")
    name = "model.layers.0.mlp.experts.down_proj"
    before = model.get_parameter(name).shape
    unfold_(model)
    assert model.get_parameter(name).shape == before  # conversions of saved names ask for it
    assert name not in model.state_dict()

"""LoRA beside a sparse base: the product, what PEFT reads of it, and what merging costs."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.contracts import SPARSITY, bench_for, logits, method_of, pruned_model
from support.families import random_model
from support.layers import EXACT, random, sparse_linear
from support.layouts import layout_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.layout.unfold import fold_, unfold_
from sparsemend.method.adapter.lora import LoraLinear
from sparsemend.method.adapter.peft_layout import (
    load_peft,
    peft_scale,
    save_peft,
    target_modules,
)
from sparsemend.method.lora import Lora
from sparsemend.run.export import to_dense_
from sparsemend.sparse.count import support_sparsity
from sparsemend.sparse.linear import SparseLinear, sparse_linears

OUTPUTS, INPUTS, RANK, SCALE = 12, 20, 3, 1.7


def lora(*overrides: str) -> Lora:
    method = method_of("lora", *overrides)
    assert isinstance(method, Lora)
    return method


def move_factors(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def layer_of(*, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> LoraLinear:
    base = sparse_linear(OUTPUTS, INPUTS, dtype=dtype, bias=True)
    layer = LoraLinear(base, random(RANK, INPUTS, seed=4), SCALE, dropout)
    with torch.no_grad():
        layer.lora_b.copy_(random(OUTPUTS, RANK, seed=5))
    return layer


def test_the_product_and_its_gradients_are_the_formula() -> None:
    """dB = s D^T (x A^T), dA = s (D B)^T x, dx = D (W + s B A)."""
    layer = layer_of()
    x, d = random(5, INPUTS, seed=6).requires_grad_(), random(5, OUTPUTS, seed=7)
    y = layer(x)
    dense = layer.weight + SCALE * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(y, F.linear(x, dense, layer.bias), **EXACT)
    y.backward(d)
    rows = x.detach()
    torch.testing.assert_close(layer.lora_b.grad, SCALE * d.T @ (rows @ layer.lora_a.T), **EXACT)
    torch.testing.assert_close(layer.lora_a.grad, SCALE * (d @ layer.lora_b).T @ rows, **EXACT)
    torch.testing.assert_close(x.grad, d @ dense, **EXACT)


def test_dropout_spares_the_base_product() -> None:
    layer, x = layer_of(dropout=0.9), random(5, INPUTS, seed=6)
    assert not torch.equal(layer(x), layer(x))
    with torch.no_grad():
        layer.lora_b.zero_()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_bf16_base_has_fp32_factors_and_answers_in_bf16() -> None:
    layer = layer_of(dtype=torch.bfloat16)
    y = layer(random(5, INPUTS, seed=6, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert layer.lora_a.dtype == layer.lora_b.dtype == torch.float32


@pytest.mark.parametrize("rule", ["alpha_over_r", "alpha_over_sqrt_r"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "phi"])
def test_peft_restores_the_saved_adapter(family: str, rule: str, tmp_path: Path) -> None:
    model = pruned_model(family=family)
    base = to_dense_(copy.deepcopy(model))
    method = lora(f"method.scale_rule={rule}", "method.alpha=6.0")
    method.attach(model, bench_for(tmp_path))
    move_factors(model)
    expected = logits(model)
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    method.save_adapter(model, tmp_path / "adapter", base="base")
    restored = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert adapted(restored) == {name for name, _ in sparse_linears(model)}
    # the same products in another order: fp32 rounding of logits of order ten
    torch.testing.assert_close(logits(restored), expected, rtol=1e-5, atol=1e-4)


def adapted(model: peft.PeftModel) -> set[str]:
    suffix, prefix = ".lora_A.default", "base_model.model."
    names = [name for name, _ in model.named_modules() if name.endswith(suffix)]
    return {name.removeprefix(prefix).removesuffix(suffix) for name in names}


def test_an_adapter_of_some_linears_is_restored_to_those_only(tmp_path: Path) -> None:
    model = random_model("llama")
    names = ["model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"]
    linears = prunable_linears(model)
    factors = {
        name: (
            random(RANK, linears[name].in_features, seed=1, dtype=torch.float32),
            random(linears[name].out_features, RANK, seed=2, dtype=torch.float32),
        )
        for name in names
    }
    save_peft(factors, model, tmp_path, base="base", alpha=3, dropout=0.0, rank_stabilised=False)
    restored = peft.PeftModel.from_pretrained(model, str(tmp_path)).eval()
    assert adapted(restored) == set(names)
    for name in names:
        layer = restored.get_submodule(f"base_model.model.{name}")
        assert torch.equal(layer.lora_A["default"].weight, factors[name][0])
        assert torch.equal(layer.lora_B["default"].weight, factors[name][1])
        assert layer.scaling["default"] == 1


def tree(**modules: nn.Module) -> nn.Module:
    return nn.ModuleDict({k: nn.ModuleDict({"proj": v}) for k, v in modules.items()})


def test_leaf_names_stand_for_linears_that_share_them() -> None:
    model = tree(one=nn.Linear(2, 2), two=nn.Linear(2, 2))
    assert target_modules(["one.proj", "two.proj"], model) == ["proj"]


@pytest.mark.parametrize("other", [nn.Linear(2, 2), nn.Embedding(2, 2), nn.Conv2d(2, 2, 1)])
def test_full_names_are_given_where_a_leaf_means_another_module_too(other: nn.Module) -> None:
    model = tree(one=nn.Linear(2, 2), two=nn.Linear(2, 2), other=other)
    assert target_modules(["one.proj", "two.proj"], model) == ["one.proj", "two.proj"]


def test_the_saved_factors_are_fp32_whatever_the_base_is(tmp_path: Path) -> None:
    model = pruned_model().to(torch.bfloat16)
    method = lora()
    method.attach(model, bench_for(tmp_path))
    method.save_adapter(model, tmp_path / "adapter", base="base")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert len(saved) == 2 * len(list(sparse_linears(model)))


def base_zeros(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: linear.weight.clone() for name, linear in sparse_linears(model)}


def test_training_moves_the_factors_and_leaves_the_base_to_the_bit(tmp_path: Path) -> None:
    model = pruned_model()
    before = base_zeros(model)
    report = lora().repair(model, bench_for(tmp_path))
    assert report["merged"] is False
    assert all(torch.equal(linear.weight, before[n]) for n, linear in sparse_linears(model))
    layers = [linear for _, linear in sparse_linears(model)]
    assert all(isinstance(layer, LoraLinear) for layer in layers)
    assert all(layer.lora_b.any() for layer in layers)
    assert support_sparsity(model) == pytest.approx(SPARSITY, abs=1e-2)


def test_merging_reports_the_sparsity_that_it_lost(tmp_path: Path) -> None:
    model = pruned_model()
    before = support_sparsity(model)
    method = lora("method.allow_densify=true")
    report = method.repair(model, bench_for(tmp_path))
    assert report["merged"] is True
    assert support_sparsity(model) == 0
    assert report["lost_sparsity"] == before
    assert all(type(linear) is SparseLinear for _, linear in sparse_linears(model))
    method.save_adapter(model, tmp_path / "adapter", base="base")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_on_fused_experts_is_none_that_peft_would_load_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = layout_model("mixtral")
    unfold_(model)
    factors = {
        name: (torch.ones(1, linear.in_features), torch.ones(linear.out_features, 1))
        for name, linear in prunable_linears(model).items()
    }
    attention = {name: pair for name, pair in factors.items() if "experts" not in name}
    save_peft(attention, model, tmp_path, base="base", alpha=1, dropout=0.0, rank_stabilised=False)
    assert (tmp_path / "adapter_config.json").exists()
    assert not caplog.records
    save_peft(factors, model, tmp_path, base="base", alpha=1, dropout=0.0, rank_stabilised=False)
    assert "PEFT has no place for the factors of 24 experts' linears" in caplog.text
    assert load_peft(tmp_path).keys() == factors.keys()
    fold_(model)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        peft.PeftModel.from_pretrained(model, str(tmp_path))


def test_an_adapter_is_read_back_with_the_scale_of_its_own_file(tmp_path: Path) -> None:
    model, written = pruned_model(), lora("method.rank=2", "method.alpha=6")
    written.attach(model, bench_for(tmp_path))
    move_factors(model)
    expected = logits(model)
    written.save_adapter(model, tmp_path, base="base")
    again = pruned_model()
    lora("method.rank=4", "method.alpha=1").load_adapter(again, tmp_path)
    assert torch.equal(logits(again), expected)


def test_a_config_of_another_rank_than_its_factors_is_refused(tmp_path: Path) -> None:
    factors = {"q_proj": (torch.ones(2, 3), torch.ones(4, 2))}
    assert peft_scale(tmp_path, factors) is None  # no config
    path = tmp_path / "adapter_config.json"
    path.write_text('{"r": 2, "lora_alpha": 6, "use_rslora": true}')
    assert peft_scale(tmp_path, factors) == 6 / 2**0.5
    path.write_text('{"r": 3, "lora_alpha": 6}')
    with pytest.raises(ValueError, match="states r=3, but the factors of q_proj have rank 2"):
        peft_scale(tmp_path, factors)

from __future__ import annotations

import pytest
import torch
from support.families import random_model
from support.unusual import unusual_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from sparsemend.blocks.find import check_blocks, find_blocks, linears_of, prunable_linears


def test_prunable_linears_leave_out_embeddings_and_head() -> None:
    names = prunable_linears(random_model("llama"))
    assert len(names) == 3 * 7
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_a_tower_that_is_larger_than_the_decoder_is_not_taken_for_it() -> None:
    model = random_model("llama")
    model.tower = nn.ModuleList(nn.Linear(100, 100) for _ in range(10))
    assert find_blocks(model) == ("model.layers", model.model.layers)


def test_a_list_deep_inside_a_decoder_does_not_outweigh_its_own() -> None:
    model = random_model("llama")
    model.model.extra = nn.Sequential(nn.ModuleList(nn.Linear(100, 100) for _ in range(10)))
    assert find_blocks(model)[0] == "model.layers"


def test_a_module_that_names_no_decoder_has_its_largest_list_for_blocks() -> None:
    module = nn.Module()
    module.small = nn.ModuleList([nn.Linear(2, 2)])
    module.inner = nn.Sequential(nn.ModuleList([nn.Linear(4, 4)]))
    assert find_blocks(module) == ("inner.0", module.inner[0])


def test_a_model_with_other_modules_for_its_linears_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=16, n_head=2, vocab_size=50)
    with pytest.raises(ValueError, match=r"gpt2 keeps 9\d% .* most in \w+\.c_\w+\.weight"):
        check_blocks(AutoModelForCausalLM.from_config(config))


def test_fused_experts_that_are_not_unfolded_are_refused() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe",
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=50,
    )
    with pytest.raises(
        ValueError, match=r"qwen3_moe keeps 66% .* most in mlp\.experts\.gate_up_proj"
    ):
        check_blocks(AutoModelForCausalLM.from_config(config))


def test_blocks_that_share_a_linear_are_refused() -> None:
    model = random_model("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj and .*layers\.2.* one weight"):
        check_blocks(model)


class Router(nn.Linear):
    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        scores, experts = F.linear(input, self.weight).topk(2)
        return scores, experts


class Rounding(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        step = input.abs().amax(dim=-1, keepdim=True) / 127
        return F.linear((input / step).round() * step, self.weight, self.bias)


class Transposed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


@pytest.mark.parametrize(
    ("kind", "counts"), [(nn.Linear, True), (Transposed, True), (Router, False), (Rounding, False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_subclass_of_linear_counts_where_it_multiplies_as_one(
    kind: type[nn.Linear], counts: bool, dtype: torch.dtype
) -> None:
    block = nn.Sequential(kind(40, 24), nn.ReLU(), kind(8, 4, bias=False)).to(dtype)
    assert list(linears_of(block)) == (["0", "2"] if counts else [])


def test_weights_that_a_subclass_rounds_are_not_those_of_linears() -> None:
    model = random_model("llama")
    model.model.layers[0].mlp.up_proj = Rounding(32, 48, bias=False)
    with pytest.raises(ValueError, match=r"llama keeps 20% .* most in mlp\.up_proj\.weight"):
        check_blocks(model)


def test_falcon_s_own_class_of_linears_is_pruned() -> None:
    kinds = {type(linear).__name__ for linear in prunable_linears(unusual_model("falcon")).values()}
    assert kinds == {"FalconLinear"}

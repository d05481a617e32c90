from __future__ import annotations

import copy

import pytest
import torch
from support.families import random_model
from support.streaming import Elsewhere, streamed
from support.unusual import unusual_model, with_experts
from torch import Tensor, nn

from sparsemend.blocks.find import find_blocks, is_never_called, prunable_linears
from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.self_check import check_walk
from sparsemend.instruments import LiveBytes


def never_called(model: nn.Module) -> list[str]:
    return [name for name, linear in prunable_linears(model).items() if is_never_called(linear)]


@pytest.mark.parametrize("family", ["mamba", "jamba", "cpmant", "gemma3n_text", "gemma4_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_walk_repeats_the_forward_of_unusual_families(
    family: str, dtype: torch.dtype, tokens: Tensor
) -> None:
    check_walk(unusual_model(family, dtype=dtype), tokens[:1])


def test_a_model_that_runs_its_blocks_several_times_is_refused(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"HrmText.* calls model\.L_module\.layers\.0 6 times"):
        check_walk(unusual_model("hrm_text"), tokens[:1])


def test_a_model_that_changes_states_between_blocks_is_refused(tokens: Tensor) -> None:
    said = r"Rwkv.*the input of rwkv\.blocks\.6 deviates by 1, more than 1e-05, in torch\.float32"
    with pytest.raises(ValueError, match=said):
        check_walk(unusual_model("rwkv"), tokens[:1])


def test_a_model_that_skips_a_block_is_refused(tokens: Tensor) -> None:
    model = random_model("llama")
    model.model.config.num_hidden_layers = 2  # how many the forward calls
    with pytest.raises(ValueError, match=r"calls model\.layers\.2 0 times"):
        check_walk(model, tokens[:1])


def test_a_model_that_reads_an_earlier_output_later_is_refused(tokens: Tensor) -> None:
    model = random_model("llama")
    first, last = model.model.layers[0], model.model.layers[2]
    seen: list[Tensor] = []
    first.register_forward_hook(lambda module, given, output: seen.append(output))

    def add(module: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        return (given[0] + seen.pop(), *given[1:]), named

    last.register_forward_pre_hook(add, with_kwargs=True)
    with pytest.raises(ValueError, match=r"the input of model\.layers\.2 deviates by 0\.\d+"):
        check_walk(model, tokens[:1])


class Passing(nn.Module):
    """A model that uses the second value that its blocks return."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, 8)
        self.layers = nn.ModuleList(PassingBlock() for _ in range(2))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden, mean = layer(hidden)
            hidden = hidden + mean
        return hidden


class PassingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.linear(hidden)
        return hidden, hidden.mean()


def test_a_model_that_needs_more_of_a_block_than_its_states_is_refused(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Passing hands its blocks more than hidden states.*None"):
        check_walk(Passing(), tokens[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_that_fails_by_itself_is_refused(dtype: torch.dtype, tokens: Tensor) -> None:
    model = random_model("llama").to(dtype)
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    model.model.layers[1].mlp.down_proj.to(other)
    name = str(dtype).removeprefix("torch.")
    said = rf"Llama.* fails in a forward of its own in {name} \(RuntimeError: .*dtype.*\); "
    with pytest.raises(ValueError, match=said) as refusal:
        check_walk(model, tokens[:1])
    assert ("set model.dtype=float32" in str(refusal.value)) == (dtype == torch.bfloat16)


def test_what_a_forward_lacks_memory_for_is_not_put_down_to_the_model(tokens: Tensor) -> None:
    model = random_model("llama")

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.layers[1].register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        check_walk(model, tokens[:1])


def test_a_linear_whose_weight_alone_is_read_is_marked(tokens: Tensor) -> None:
    model = unusual_model("mamba")
    check_walk(model, tokens[:1])
    assert never_called(model) == [f"backbone.layers.{i}.mixer.dt_proj" for i in range(3)]
    assert never_called(copy.deepcopy(model)) == never_called(model)


def test_a_linear_in_a_branch_that_is_not_taken_is_marked(tokens: Tensor) -> None:
    model = unusual_model("bart")
    check_walk(model, tokens[:1])
    assert {name.split(".")[4] for name in never_called(model)} == {"encoder_attn"}


def test_an_expert_without_tokens_is_not_taken_for_one_that_is_never_called(
    tokens: Tensor,
) -> None:
    model = with_experts(random_model("llama"))
    check_walk(model, tokens[:1])
    assert not never_called(model)


def test_the_check_leaves_no_hook_and_no_weight_changed(tokens: Tensor) -> None:
    model = random_model("gemma2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_walk(model, tokens[:1])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    modules = [module for block in find_blocks(model)[1] for module in block.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_an_offloaded_check_brings_every_block_home(tokens: Tensor) -> None:
    model = unusual_model("gemma4_text")
    block = find_blocks(model)[1][1]
    moved: list[str] = []
    original = block.to
    block.to = lambda device: moved.append(str(device)) or original(device)
    check_walk(model, tokens[:1], device=torch.device("cpu"), offload=True)
    assert len(moved) == 2  # there and back, for the forward and for the walk


def test_the_check_holds_the_states_of_no_earlier_block(tokens: Tensor) -> None:
    peaks = []
    for blocks in (2, 4):
        model = streamed(random_model("llama", num_hidden_layers=blocks))
        with LiveBytes([]) as live:
            check_walk(model, tokens[:1].repeat(1, 2))
        peaks.append(live.peak)
        assert elsewhere(model).most == 1
    # arguments that a block is given are kept for each block, in objects that all share
    assert peaks[1] - peaks[0] < tokens[:1].numel() * 32 * 4


def elsewhere(model: nn.Module) -> Elsewhere:
    residency = residency_of(model)
    assert isinstance(residency, Elsewhere)
    return residency


def test_a_check_reads_every_block_once_after_the_first(tokens: Tensor) -> None:
    model = streamed(random_model("llama"))
    check_walk(model, tokens[:1])
    assert elsewhere(model).visits == [(0, False), (0, False), (1, False), (2, False)]

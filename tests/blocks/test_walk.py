import pytest
import torch
from support.families import FAMILIES, random_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sparsemend.blocks.find import check_prunable, find_blocks, linears_of, prunable_linears
from sparsemend.blocks.statistics import InputNorm, Statistic
from sparsemend.blocks.walk import Calibration


class Calls(Statistic):
    def __init__(self, in_features: int, device: torch.device) -> None:
        self.inputs: list[Tensor] = []

    def update(self, inputs: Tensor) -> None:
        self.inputs.append(inputs.clone())


def hidden_states(model: nn.Module, tokens: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states


@pytest.mark.parametrize("family", FAMILIES)
def test_each_visit_sees_the_hidden_states_of_the_whole_model(family: str, tokens: Tensor) -> None:
    model = random_model(family)
    expected = hidden_states(model, tokens)
    for visit in Calibration([tokens[:2], tokens[2:4], tokens[4:7]]).walk(model):
        got = torch.cat(list(visit.inputs))
        torch.testing.assert_close(got, expected[visit.index][:7], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_after_the_last_block_give_the_logits(family: str, tokens: Tensor) -> None:
    model = random_model(family)
    *_, last = Calibration([tokens[:2]], together=2).walk(model)
    prefix, _ = find_blocks(model)
    seen: list[Tensor] = []
    handle = last.block.register_forward_hook(
        lambda m, a, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.no_grad():
        model(input_ids=tokens[:2], use_cache=False)
    handle.remove()
    torch.testing.assert_close(last.outputs()[0], seen[0], rtol=1e-4, atol=1e-4)
    assert prefix in last.name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_in_the_loop_body_reaches_the_next_block(family: str, tokens: Tensor) -> None:
    model, changed = random_model(family), random_model(family)
    with torch.no_grad():
        for linear in linears_of(find_blocks(changed)[1][0]).values():
            linear.weight.mul_(0.5)
    expected = hidden_states(changed, tokens[:2])
    for visit in Calibration([tokens[:2]], together=2).walk(model):
        if visit.index == 1:
            torch.testing.assert_close(visit.inputs[0], expected[1], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for linear in visit.linears.values() if visit.index == 0 else []:
                linear.weight.mul_(0.5)


def test_observe_feeds_every_batch_to_every_linear(tokens: Tensor) -> None:
    model = random_model("llama")
    visit = next(Calibration([tokens], together=2).walk(model))
    statistics = visit.observe(Calls)
    expected: dict[str, list[Tensor]] = {name: [] for name in visit.linears}
    handles = [
        linear.register_forward_pre_hook(lambda m, a, n=name: expected[n].append(a[0].clone()))
        for name, linear in visit.linears.items()
    ]
    visit.outputs()
    for handle in handles:
        handle.remove()
    for name, statistic in statistics.items():
        assert len(statistic.inputs) == 4
        for got, want in zip(statistic.inputs, expected[name], strict=True):
            assert torch.equal(got, want)


def test_inputs_that_a_block_flattens_come_back_as_sequences(tokens: Tensor) -> None:
    visit = next(Calibration([tokens[:2]], together=2).walk(random_model("opt")))
    flattened: list[int] = []
    handle = visit.linears["fc1"].register_forward_pre_hook(
        lambda m, given: flattened.append(given[0].ndim)
    )
    statistics = visit.observe(Calls)
    handle.remove()
    assert flattened == [2], "OPT no longer flattens; test another family"
    assert statistics["fc1"].inputs[0].shape == (2, 24, 32)


def test_linears_with_the_same_input_share_a_statistic() -> None:
    model = random_model("llama")
    visit = next(Calibration([torch.arange(3, 11).view(2, 4)]).walk(model))
    statistics = visit.observe(InputNorm)
    by_object = {id(s) for s in statistics.values()}
    assert len(by_object) == 4  # q k v | o | gate up | down
    assert statistics["self_attn.q_proj"] is statistics["self_attn.v_proj"]
    assert statistics["mlp.gate_proj"] is statistics["mlp.up_proj"]


def test_hooks_are_removed_when_a_statistic_fails(tokens: Tensor) -> None:
    class Broken(Calls):
        def update(self, inputs: Tensor) -> None:
            raise RuntimeError("broken statistic")

    model = random_model("llama")
    visit = next(Calibration([tokens]).walk(model))
    with pytest.raises(RuntimeError, match="broken statistic"):
        visit.observe(Broken)
    assert not any(linear._forward_pre_hooks for linear in visit.linears.values())


def test_recording_leaves_the_blocks_as_they_were(tokens: Tensor) -> None:
    model = random_model("gemma2")
    before = hidden_states(model, tokens)[-1]
    list(Calibration([tokens]).walk(model))
    assert all("forward" not in vars(block) for block in find_blocks(model)[1])
    assert torch.equal(hidden_states(model, tokens)[-1], before)


def test_prunable_linears_leave_out_embeddings_and_head() -> None:
    names = prunable_linears(random_model("llama"))
    assert len(names) == 3 * 7
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_a_model_with_other_modules_for_its_linears_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=16, n_head=2, vocab_size=50)
    with pytest.raises(ValueError, match=r"gpt2 keeps 9\d% .* most in \w+\.c_\w+\.weight"):
        check_prunable(AutoModelForCausalLM.from_config(config))


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
        check_prunable(AutoModelForCausalLM.from_config(config))


def test_blocks_whose_arguments_depend_on_the_tokens_are_refused(tokens: Tensor) -> None:
    model = random_model("llama")

    def depend(module: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        named["extra"] = given[0].sum()
        return given, named

    model.model.layers[1].register_forward_pre_hook(depend, with_kwargs=True)
    with pytest.raises(ValueError, match="depend on the tokens"):
        next(Calibration([tokens[:2], tokens[2:4]]).walk(model))


def test_a_walk_without_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no calibration windows"):
        next(Calibration(()).walk(random_model("llama")))


def test_windows_reach_the_blocks_in_order_whatever_their_batches(tokens: Tensor) -> None:
    calibration = Calibration((tokens[:3], tokens[3:4], tokens[4:]))
    assert torch.equal(calibration.windows, tokens)
    assert torch.equal(calibration.first(5).windows, tokens[:5])
    assert [len(state) for state in next(calibration.walk(random_model("llama"))).inputs] == [1] * 8


def test_a_walk_that_is_left_brings_its_block_home() -> None:
    model = random_model("llama")
    moved: list[str] = []
    block = find_blocks(model)[1][0]
    original = block.to
    block.to = lambda device: moved.append(str(device)) or original(device)
    steps = Calibration([torch.arange(3, 11).view(2, 4)], offload=True).walk(model)
    next(steps)
    steps.close()
    assert len(moved) == 2

import logging

import pytest
import torch
from support.families import FAMILIES, random_model
from support.unusual import unusual_model, with_experts
from torch import Tensor, nn

from sparsemend import terminal
from sparsemend.blocks.find import find_blocks, linears_of, prunable_linears
from sparsemend.blocks.statistics import InputNorm, Statistic
from sparsemend.blocks.walk import Calibration
from sparsemend.terminal import StageLines


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


def test_a_walk_without_a_terminal_says_how_far_it_is(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1  # a look at the clock costs a second: once at the start, then once per forward
        return now

    monkeypatch.setattr(terminal, "monotonic", clock)
    monkeypatch.setattr(StageLines, "latest", None)
    caplog.set_level(logging.INFO, "sparsemend.terminal")
    model = random_model("llama")
    for visit in Calibration([tokens]).walk(model):  # 8 windows of 24 tokens
        visit.observe(Calls)
        visit.outputs()
    # blocks of 24, 24 and 16 forwards: those of the last one are not handed on
    assert caplog.messages == [
        "blocks 1/3  2 tokens/s  60 s left",
        "blocks 2/3  2 tokens/s  30 s left",
    ]


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


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_arguments_that_depend_on_the_tokens_are_those_of_every_window(
    family: str, tokens: Tensor
) -> None:
    """Keys and values reach the later blocks of their own window, however often blocks run."""
    model = unusual_model(family)
    inputs = [block_inputs(model, window.unsqueeze(0)) for window in tokens[:3]]
    calibration = Calibration([tokens[:3]])
    recorded = calibration.record(model)
    assert recorded.depend_on_tokens
    for _ in range(2):  # a recording serves several walks
        for visit in calibration.walk(model, recorded=recorded):
            visit.observe(InputNorm)
            for state, window in zip(visit.inputs, inputs, strict=True):
                assert torch.equal(state, window[visit.index])


def block_inputs(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    """The hidden states that every block gets in one forward."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, given, named: seen.append(given[0].clone()), with_kwargs=True
        )
        for block in find_blocks(model)[1]
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_equal_arguments_are_kept_once(tokens: Tensor) -> None:
    recorded = Calibration([tokens]).record(random_model("gemma2"))
    assert not recorded.depend_on_tokens
    for calls in recorded.arguments:
        assert len({id(call) for call in calls}) == 1
    recorded = Calibration([tokens]).record(unusual_model("gemma4_text"))
    masks = {id(call.keyword["attention_mask"]) for call in recorded.arguments[0]}
    own = {id(call.positional[0]) for call in recorded.arguments[0]}
    assert (len(masks), len(own)) == (1, len(tokens))


def test_equal_windows_do_not_hide_that_arguments_depend_on_tokens(tokens: Tensor) -> None:
    windows = torch.cat([tokens[:1], tokens[:1], tokens[1:3]])
    assert Calibration([windows]).record(unusual_model("gemma4_text")).depend_on_tokens


def test_one_window_needs_no_second_to_be_recorded(tokens: Tensor) -> None:
    model = unusual_model("gemma3n_text")
    (*_, last) = Calibration([tokens[:1]]).walk(model)
    assert last.outputs()[0].shape == (2, 1, 24, 32)


def test_windows_of_several_batches_cannot_pass_a_block_whose_arguments_depend_on_them(
    tokens: Tensor,
) -> None:
    visit = next(Calibration([tokens[:2]]).walk(unusual_model("gemma4_text")))
    with pytest.raises(ValueError, match=r"model\.layers\.0 depend on the tokens"):
        visit.check_free()
    visit = next(Calibration([tokens[:2]]).walk(unusual_model("gemma3n_text")))
    with pytest.raises(ValueError, match=r"are \(2, 1, 24, 32\), not a vector per token \(1, 24\)"):
        visit.check_free()


def test_a_residual_stream_keeps_the_dtype_that_a_block_gives_it(tokens: Tensor) -> None:
    model = unusual_model("mamba", dtype=torch.bfloat16)
    expected = block_inputs(model, tokens[:1])
    dtypes = []
    for visit in Calibration([tokens[:1]]).walk(model):
        assert torch.equal(visit.inputs[0], expected[visit.index])
        dtypes.append(visit.inputs[0].dtype)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]


def test_an_expert_that_no_token_chose_has_no_statistic(tokens: Tensor) -> None:
    model = with_experts(random_model("llama"))
    _, visit, _ = Calibration([tokens]).walk(model)
    missing = visit.linears.keys() - visit.observe(InputNorm).keys()
    assert missing == {"mlp.experts.2"}


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
    assert len(moved) == 4  # to where calls are recorded and back, to the visit and back


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_recording_computes_a_few_tokens_of_one_block(family: str, tokens: torch.Tensor) -> None:
    model, computed = random_model(family), []
    for name, linear in prunable_linears(model).items():
        linear.register_forward_pre_hook(
            lambda module, inputs, name=name: computed.append((name, inputs[0].shape[-2]))
        )
    Calibration((tokens,)).record(model)
    first = [name for name in prunable_linears(model) if ".0." in name]
    assert sorted(computed) == sorted((name, 8) for name in first)

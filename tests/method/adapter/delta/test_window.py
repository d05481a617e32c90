"""What a window keeps of the gradients it sees."""

from __future__ import annotations

import math

import pytest
import torch
from support.layers import random, sparse_linear
from torch import Tensor, nn

from sparsemend.method.adapter.delta import window as window_module
from sparsemend.method.adapter.delta.linear import DeltaLinear
from sparsemend.method.adapter.delta.rounds import DeltaRounds
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.adapter.delta.slot_adamw import SlotAdamW
from sparsemend.method.adapter.delta.window import Window

SHAPE = (4, 6)


def layer() -> DeltaLinear:
    return DeltaLinear(sparse_linear(*SHAPE), torch.tensor([3, 8, 20]), "scatter")


def gradients(steps: int, calls: int) -> Tensor:
    return random(steps, calls, *SHAPE, seed=5)


def shown(window: Window, given: Tensor) -> Window:
    """`window` after gradients (steps, calls, O, I) of a layer called so often in each step."""
    for index, step in enumerate(given):
        for call, gradient in enumerate(step):
            window.final = index == len(given) - 1 and call == len(step) - 1
            window.observe(gradient, layer())
        window.end_step(layer())
    return window


@pytest.mark.parametrize("calls", [1, 3])
def test_sums_and_squares_are_of_the_steps_whole_gradient(calls: int) -> None:
    """Micro-batches, or calls of a layer that is used more than once, add up before squaring."""
    given = gradients(4, calls)
    window = shown(Window(5, None, watched=0), given)
    whole = given.sum(dim=1).view(4, -1)
    chosen = given[0, 0].view(-1).abs().topk(5).indices
    assert window.candidates is not None
    assert sorted(window.candidates.tolist()) == sorted(chosen.tolist())
    at = window.candidates.long()
    torch.testing.assert_close(window.sums, whole.sum(dim=0)[at])
    torch.testing.assert_close(window.squares, (whole**2).sum(dim=0)[at])
    assert window.steps == 4


def test_the_mean_sensitivity_gradient_is_that_of_the_support() -> None:
    given = gradients(3, 2)
    window = shown(Window(2, "mean", watched=0), given)
    positions, gradient = window.sensitivity_gradient(layer())
    keep = layer().keep
    assert positions.tolist() == keep.reshape(-1).nonzero().view(-1).tolist()
    torch.testing.assert_close(gradient, given.sum(dim=1).mean(dim=0)[keep])


def test_the_root_mean_square_is_that_of_whole_steps_in_plain_python() -> None:
    """Three steps of two calls; two opposite steps cancel in a mean and do not here."""
    given = gradients(3, 2)
    given[1] = -given[0]
    window = shown(Window(2, "rms", watched=0), given)
    positions, gradient = window.sensitivity_gradient(layer())
    keep = layer().keep.reshape(-1).tolist()
    assert positions.tolist() == [i for i, kept in enumerate(keep) if kept]
    steps = [[(a + b) for a, b in zip(*pair, strict=True)] for pair in given.flatten(2).tolist()]
    expected = [math.sqrt(sum(step[i] ** 2 for step in steps) / 3) for i in positions.tolist()]
    assert gradient.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["rms", "mean", "candidates", "last"])
def test_micro_batches_choose_what_their_sum_chooses(rule: str) -> None:
    """Candidates and followed weights are those of the whole step's gradient."""
    given = gradients(3, 4)
    split, whole = (Window(5, rule, watched=4) for _ in range(2))
    for index, step in enumerate(given):
        split.final = whole.final = index == len(given) - 1
        for number, gradient in enumerate(step):
            split.complete = number == len(step) - 1
            split.observe(gradient, layer())
        total = step[0]
        for gradient in step[1:]:
            total = total + gradient
        whole.observe(total, layer())
        split.end_step(layer())
        whole.end_step(layer())
    assert torch.equal(split.candidates, whole.candidates)  # type: ignore[arg-type]
    torch.testing.assert_close(split.sums, whole.sums)
    torch.testing.assert_close(split.squares, whole.squares)
    for one, other in zip(*(w.sensitivity_gradient(layer()) for w in (split, whole)), strict=True):
        torch.testing.assert_close(one, other)
    assert split.state().keys() == whole.state().keys()


def test_processes_share_a_whole_gradient_once_a_window_and_little_once_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        shared.append(tensor.numel())
        return tensor

    monkeypatch.setattr(window_module, "mean_over_ranks", note)
    monkeypatch.setattr(window_module, "average_over_ranks_", note)
    window = shown(Window(2, "rms", watched=0), gradients(3, 4))
    kept = int(layer().keep.count_nonzero())
    assert shared == [layer().size, *([window.count, kept] * 3)]


@pytest.mark.parametrize(("rule", "decided", "counted"), [("candidates", 0, 3), ("last", 2, 1)])
def test_few_positions_are_followed_where_memory_is_short(
    rule: str, decided: int, counted: int
) -> None:
    """The least sensitive of the first step; with `last` all of it in the last step."""
    given = gradients(3, 1)[:, 0]
    window = shown(Window(2, rule, watched=4), given.unsqueeze(1))
    positions, gradient = window.sensitivity_gradient(layer())
    one = layer()
    score = (one.effective_weight().detach() * given[decided]).abs()
    score[~one.keep] = torch.inf
    lowest = score.view(-1).topk(4, largest=False).indices
    assert positions.tolist() == sorted(lowest.tolist())
    seen = given[-counted:].view(counted, -1)[:, positions]
    squared = (seen**2).mean(dim=0).sqrt()
    torch.testing.assert_close(gradient, squared if rule == "candidates" else seen[0] / 3)


@pytest.mark.parametrize("rule", ["rms", "mean"])
def test_a_saved_window_goes_on_where_it_was(rule: str) -> None:
    given = gradients(4, 1)
    whole = shown(Window(5, rule, watched=0), given)
    half = shown(Window(5, rule, watched=0), given[:2])
    again = shown(Window.from_state(half.state(), torch.device("cpu")), given[2:])
    for name, value in whole.state().items():
        other = again.state()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other


def test_grown_deltas_are_seeded_from_their_window() -> None:
    """Age 2 after two steps, and moments of the mean gradient and mean square there."""
    one, given = layer(), gradients(2, 1)
    optimizer = SlotAdamW([one.values], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    one.values.grad = torch.ones(3).double()
    optimizer.step()
    one.window = shown(Window(3, None, watched=0), given)
    schedule = RoundSchedule(interval=4, window=2, steps=8, initial=0.2, first=1.0, decay="linear")
    rounds = DeltaRounds(schedule, lambda layer: Window(3, None, watched=0), seed_age_offset=1)
    move = rounds.choose(one, optimizer, 3)
    assert move.positions.numel() > 0
    rounds.update(nn.ModuleList([one]), optimizer, 2)
    whole, state = given[:, 0].view(2, -1), optimizer.state[one.values]
    for position in move.positions.tolist():
        slot = one.indices.tolist().index(position)
        mean, square = whole[:, position].mean(), (whole[:, position] ** 2).mean()
        assert float(state["exp_avg"][slot]) == pytest.approx(float((1 - 0.9**2) * mean))
        assert float(state["exp_avg_sq"][slot]) == pytest.approx(float((1 - 0.99**2) * square))
        assert int(state["step"][slot]) == 2
        assert float(one.values[slot]) == 0


@pytest.mark.parametrize("rule", [None, "rms", "mean", "last", "candidates"])
def test_a_window_without_any_gradient_closes_on_zeros(rule: str | None) -> None:
    window = Window(5, rule, watched=4)
    window.end_step(layer())
    assert not window.close(layer())
    assert window.candidates is not None
    assert window.sums is not None
    assert not window.sums.any()
    if rule is not None:
        assert not window.sensitivity_gradient(layer())[1].any()


@pytest.mark.parametrize("rule", ["rms", "mean", "last", "candidates"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_gradient_that_ends_before_its_step_is_of_that_step(rule: str, *, stopped: bool) -> None:
    """The last micro-batch of the first step does not reach the layer; a run may stop after it."""
    given = gradients(3, 1)
    usual, late = shown(Window(5, rule, watched=4), given), Window(5, rule, watched=4)
    for index, (gradient,) in enumerate(given):
        late.final, late.complete = index == len(given) - 1, index > 0
        late.observe(gradient.clone(), layer())
        late.end_step(layer())
        if stopped and index == 0:
            late = Window.from_state(late.state(), torch.device("cpu"))
    for name, value in usual.state().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(late.state()[name], value)


def test_deltas_that_saw_no_gradient_stay_where_they_are() -> None:
    schedule = RoundSchedule(interval=4, window=2, steps=8, initial=0.9, first=None, decay="linear")
    rounds = DeltaRounds(schedule, lambda layer: Window(3, None, watched=0), seed_age_offset=0)
    model = nn.Sequential(layer())
    model[0].window = Window(3, None, watched=0)
    model[0].window.end_step(model[0])
    optimizer = SlotAdamW([model[0].values], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    before = model[0].indices.clone()
    report = rounds.update(model, optimizer, step=4)
    assert torch.equal(model[0].indices, before)
    assert report["dropped"] == 0

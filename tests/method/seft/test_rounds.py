"""What every round of SEFT leaves true, over random layers, budgets, fractions and options."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemend.method.adapter.delta.rounds import Moved
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.adapter.delta.slot_adamw import SlotAdamW
from sparsemend.method.adapter.delta.window import Window
from sparsemend.method.seft import rounds
from sparsemend.method.seft.linear import DEAD, GROWN, ON_BASE, SeftLinear
from sparsemend.method.seft.rounds import (
    Adaptation,
    SeftRounds,
    adapt,
    lowest_of_group,
    scores,
    split,
)
from sparsemend.sparse.drop_and_grow import lowest
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_group, lowest_per_row

ROUNDS = 100  # of each kind: some sixteen random models
ALL_KEPT = torch.tensor([[True, True]])
TWO_FOUR = Pattern.parse("2:4")


def draw(generator: torch.Generator, low: int, high: int) -> int:
    """An integer in [low, high]."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def chance(generator: torch.Generator) -> bool:
    return draw(generator, 0, 1) == 1


@dataclass
class Trial:
    """A model of a few layers at the start of a run, its optimizer and its rounds."""

    model: nn.Module
    layers: list[SeftLinear]
    optimizer: SlotAdamW
    rounds: SeftRounds
    generator: torch.Generator

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def train(self) -> None:
        """A window of two steps of two calls each, gradients at random; values move off zero."""
        for layer in self.layers:
            assert self.rounds.make_window is not None
            layer.window = self.rounds.make_window(layer)
        for step in range(2):
            for layer in self.layers:
                for call in range(2):
                    layer.window.final = step == call == 1
                    layer.window.observe(self.random(*layer.weight.shape), layer)
                layer.window.end_step(layer)
                layer.values.grad = self.random(layer.values.numel()) * layer.alive
            self.optimizer.step()

    def state(self, layer: SeftLinear) -> dict[int, tuple[float, ...]]:
        """Position -> value, moments and age of every slot."""
        state = self.optimizer.state[layer.values]
        columns = [layer.values.detach(), *(state[n] for n in ("exp_avg", "exp_avg_sq", "step"))]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return dict(zip(layer.indices.tolist(), rows, strict=True))


def trial(seed: int, pattern: Pattern | None = None, **fixed: Any) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    growth = fixed.pop("growth", None) or ("all" if draw(generator, 0, 3) else "active")
    within = pattern if growth == "all" else None
    rule = {
        "adapt": True,
        "scope": "global" if within is None and draw(generator, 0, 3) == 0 else "layer",
        "candidates": "base_only" if chance(generator) and within is None else "all",
        "score": "magnitude" if draw(generator, 0, 3) == 0 else "sensitivity",
        "refill": within is None and draw(generator, 0, 3) == 0,
        "fold": draw(generator, 0, 4) == 0,
        **fixed,
    }
    gradient = ("mean", "last", "candidates", "rms")[draw(generator, 0, 3)]
    if rule["refill"] or within is not None:
        gradient = ("mean", "rms")[draw(generator, 0, 1)]
    sensitivity = gradient if growth == "all" and rule["score"] == "sensitivity" else None
    untouched = chance(generator)
    layers = []
    for _ in range(draw(generator, 1, 3)):
        base = sparse_layer(generator, pattern)
        kept = base.keep.reshape(-1).nonzero().view(-1)
        count = draw(generator, 1, len(kept))
        chosen = kept[torch.randperm(len(kept), generator=generator)[:count]]
        layers.append(
            SeftLinear(
                base,
                chosen,
                "scatter",
                growth=growth,
                untouched_candidates=untouched,
                refill=rule["refill"],
                rewrites_base=rule["fold"] or within is not None,
            )
        )
    optimizer = SlotAdamW(
        [layer.values for layer in layers], lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0
    )
    first = 0.05 + 0.95 * float(torch.rand(1, generator=generator))
    schedule = RoundSchedule(
        interval=4, window=2, steps=40, initial=first, first=1.0, decay="linear"
    )

    def make_window(layer: SeftLinear) -> Window:
        return Window(layer.indices.numel(), sensitivity, watched=2 * layer.indices.numel())

    rounds = SeftRounds(Adaptation(within=within, **rule), schedule, make_window, seed_age_offset=1)
    return Trial(nn.ModuleList(layers), layers, optimizer, rounds, generator)


def sparse_layer(generator: torch.Generator, pattern: Pattern | None) -> SparseLinear:
    rows, columns = draw(generator, 1, 9), draw(generator, 2, 9)
    if pattern is not None:
        columns = 4 * draw(generator, 1, 3)
    weight = torch.randn(rows, columns, generator=generator)
    if pattern is not None:
        keep = ~lowest_per_group(weight.abs(), pattern)
    else:
        zeros = draw(generator, 0, rows * columns - 1)
        keep = ~lowest_per_row(weight.abs().view(1, -1), zeros).view(rows, columns)
    return SparseLinear(nn.Parameter(weight, requires_grad=False), None, keep)


def after_rounds(seed: int, count: int, check: Any, **settings: Any) -> int:
    """Run up to `count` rounds of one trial, check(trial, before, record) after each; how many."""
    one = trial(seed, **settings)
    for step in range(2, 2 + 4 * count, 4):
        one.train()
        before = [
            {
                "keep": layer.keep.clone(),
                "base": layer.base_keep.clone(),
                "state": one.state(layer),
                "move": one.rounds.choose(
                    layer,
                    one.optimizer,
                    int(layer.indices.numel() * one.rounds.schedule.fraction(step)),
                ),
                "held": layer.indices.tolist(),
                "dead": layer.indices[~layer.alive].tolist(),
            }
            for layer in one.layers
        ]
        one.rounds.update(one.model, one.optimizer, step)
        check(one, before, one.rounds.records[-1])
    return count


def over_random_rounds(check: Any, **settings: Any) -> None:
    done = seed = 0
    while done < ROUNDS:
        done += after_rounds(seed, 6, check, **settings)
        seed += 1


def test_supports_never_exceed_their_budget_and_fill_it_where_growth_asked() -> None:
    filled = 0

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        nonlocal filled
        groups = [[i] for i in range(len(one.layers))]
        if one.rounds.adaptation.scope == "global":
            groups = [list(range(len(one.layers)))]
        for group in groups:
            allocated = sum(int(one.layers[i].keep.sum()) for i in group)
            budget = sum(one.layers[i].budget for i in group)
            assert allocated <= budget
            assert allocated == sum(record["allocated"][i] for i in group)
            if sum(record["pruned"][i] for i in group):
                assert allocated == budget
                filled += 1
            elif one.rounds.adaptation.refill and allocated < budget:
                left = sum(int(one.layers[i].refillable().sum()) for i in group)
                assert left == 0  # nothing more could come back

    over_random_rounds(check)
    assert filled > ROUNDS / 4


def test_a_checkpoint_brings_the_base_back_that_it_does_not_hold() -> None:
    """Into the layer that went on from there, and into one as it was at the start."""
    without = 0
    for seed in range(30):
        one, start = trial(seed), trial(seed)
        saved = []
        for step in range(2, 26, 4):
            one.train()
            one.rounds.update(one.model, one.optimizer, step)
            saved.append([(moving_state(layer), layer.weight.clone()) for layer in one.layers])
        for states in reversed(saved):
            for layers in (one.layers, start.layers):
                for layer, (state, weight) in zip(layers, states, strict=True):
                    layer.load_state_dict(state, strict=False)
                    assert torch.equal(layer.weight, weight)
                    without += "weight" not in state
    assert without > 200


def moving_state(layer: SeftLinear) -> dict[str, Tensor]:
    """What a checkpoint holds of a layer."""
    names = (*layer.moving, "values")
    return {name: layer.state_dict()[name].clone() for name in names}


def test_weights_are_zero_off_the_support_and_indices_distinct_and_ascending() -> None:
    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        for layer in one.layers:
            assert not layer.effective_weight()[~layer.keep].any()
            assert not layer.weight[~layer.base_keep].any()
            assert (layer.indices.diff() > 0).all()
            states = layer.keep.reshape(-1)[layer.indices.long()]
            assert torch.equal(states, layer.alive)
            assert not layer.values[layer.states == DEAD].any()
            for name in ("exp_avg", "exp_avg_sq"):
                assert not one.optimizer.state[layer.values][name][layer.states == DEAD].any()

    over_random_rounds(check)


def test_a_pruned_position_is_allocated_only_while_a_delta_holds_it() -> None:
    """No kept weight of these layers is 0 at the start."""

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        for layer in one.layers:
            held = torch.zeros_like(layer.keep)
            held.view(-1)[layer.indices[layer.states == GROWN].long()] = True
            assert torch.equal(layer.keep & (layer.weight == 0), held)

    over_random_rounds(check, fold=False)


def test_growth_survives_its_first_adaptation() -> None:
    grown = 0

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        nonlocal grown
        for layer, then in zip(one.layers, before, strict=True):
            new = then["move"].positions
            assert layer.keep.reshape(-1)[new].all()
            place = torch.searchsorted(layer.indices, new.to(layer.indices.dtype))
            assert layer.alive[place].all()
            assert not layer.values[place].any()
            grown += int((layer.states[place] == GROWN).sum())

    over_random_rounds(check)
    assert grown > ROUNDS


def test_a_cancelled_drop_and_what_did_not_move_keep_value_index_and_state() -> None:
    returned = 0

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        nonlocal returned
        for layer, then in zip(one.layers, before, strict=True):
            left = {then["held"][slot] for slot in then["move"].slots.tolist()}
            revived = {then["held"][s] for s in then["move"].returning.tolist()} & set(then["dead"])
            pruned = set(layer.indices[~layer.alive].tolist())
            same = set(then["held"]) - left - revived - pruned
            now = one.state(layer)
            assert {p: now[p] for p in same} == {p: then["state"][p] for p in same}
            returned += len(then["move"].returning) - len(revived)

    over_random_rounds(check, fold=False)
    assert returned > ROUNDS / 2


def test_growth_on_the_support_alone_never_changes_the_base_mask() -> None:
    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        for layer, then in zip(one.layers, before, strict=True):
            assert torch.equal(layer.keep, then["keep"])
            assert torch.equal(layer.base_keep, then["base"])
            assert (layer.states == ON_BASE).all()

    over_random_rounds(check, growth="active")


def test_two_of_four_stay_two_of_four_whether_growth_leaves_the_support_or_not() -> None:
    """No place is lost either: where no delta is, a kept weight is not 0."""
    moved = 0

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        nonlocal moved
        for layer, then in zip(one.layers, before, strict=True):
            groups = layer.keep.reshape(layer.out_features, -1, 4).sum(dim=2)
            assert (groups == 2).all()
            alone = layer.keep.clone()
            alone.view(-1)[layer.indices[layer.alive].long()] = False
            assert layer.weight[alone].all()
            moved += int((layer.keep != then["keep"]).sum())

    over_random_rounds(check, pattern=TWO_FOUR)
    assert moved > ROUNDS


def test_folding_at_rounds_keeps_dropped_values() -> None:
    """Before adaptation the effective weight is what it was; with nothing pruned it stays."""

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        for layer, pruned in zip(one.layers, record["pruned"], strict=True):
            if not pruned:
                assert not layer.values.any()

    over_random_rounds(check, fold=True, growth="active")
    one = trial(3, fold=True, growth="active")
    one.train()
    weights = [layer.effective_weight().detach().clone() for layer in one.layers]
    one.rounds.update(one.model, one.optimizer, 2)
    for layer, weight in zip(one.layers, weights, strict=True):
        assert torch.equal(layer.effective_weight(), weight)


def test_without_protection_new_growth_would_be_the_first_to_go() -> None:
    """Its score is 0: the reason for the rule."""
    one = trial(1, growth="all", adapt=False, fold=False, scope="layer", refill=False)
    one.train()
    one.rounds.update(one.model, one.optimizer, 2)
    layer = one.layers[0]
    excess = int(layer.keep.sum()) - layer.budget
    assert excess > 0
    score = (layer.effective_weight() * one.random(*layer.weight.shape)).abs()
    score[~layer.keep] = torch.inf
    grown = layer.indices[layer.states == GROWN].long()
    first = score.view(-1).argsort()[:excess]
    assert set(first.tolist()) <= set(grown.tolist())


@pytest.mark.parametrize(
    ("decay", "first", "fractions"),
    [
        # 0.2 (1 - t/16) or 0.2 (1 + cos(pi t/16)) / 2 by hand, t = 3, 9, 15
        ("linear", 1.0, (1.0, 0.0875, 0.0125)),
        ("linear", None, (0.1625, 0.0875, 0.0125)),
        ("cosine", None, (0.183147, 0.080491, 0.001921)),
        ("cosine", 0.05, (0.05, 0.080491, 0.001921)),
    ],
)
def test_windows_and_rounds_come_when_spiel_has_them(
    decay: str, first: float | None, fractions: tuple[float, ...]
) -> None:
    """R = 6, A = 3: steps 1-3, then 6-9, 12-15; rounds after 3, 9, 15; none after T."""
    schedule = RoundSchedule(interval=6, window=3, steps=16, initial=0.2, first=first, decay=decay)
    observed = [step for step in range(1, 30) if schedule.observes(step)]
    assert observed == [1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15]
    assert [step for step in range(1, 30) if schedule.due(step)] == [3, 9, 15]
    assert [schedule.fraction(t) for t in (3, 9, 15)] == pytest.approx(fractions, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 5}, r"accumulation_steps=5 is not below method.update_interval - 1 = 5"),
        ({"interval": 17}, r"update_interval=17 is longer than method.max_steps=16"),
        ({"initial": 0.0}, r"initial_drop_rate=0.0 is not in \(0, 1\]"),
        ({"initial": 1.5}, r"initial_drop_rate=1.5 is not in \(0, 1\]"),
        ({"first": 0.0}, r"first_drop_rate=0.0 is not in \(0, 1\]"),
        ({"decay": "step"}, r"drop_schedule='step' is not one of: linear, cosine"),
    ],
)
def test_a_schedule_under_which_nothing_would_evolve_is_refused(
    change: dict[str, Any], message: str
) -> None:
    good = {"interval": 6, "window": 3, "steps": 16, "initial": 0.2, "first": None}
    good["decay"] = "linear"
    with pytest.raises(ValueError, match=message):
        RoundSchedule(**{**good, **change})


def hand_layer(weights: list[float], slots: list[int], gradient: list[float]) -> Moved:
    """One row of weights, zeros pruned, deltas of 0 at `slots`, after a window of one step."""
    base = torch.tensor([weights])
    layer = SeftLinear(
        SparseLinear(nn.Parameter(base, requires_grad=False), None, base != 0),
        torch.tensor(slots),
        "scatter",
        growth="all",
        untouched_candidates=False,
        refill=False,
        rewrites_base=False,
    )
    window = Window(len(slots), "mean", watched=0)
    window.observe(torch.tensor([gradient]), layer)
    window.end_step(layer)
    return Moved(layer, window, (layer.states == GROWN).nonzero().view(-1))


PER_LAYER = Adaptation(
    adapt=True,
    scope="layer",
    candidates="all",
    score="sensitivity",
    refill=False,
    fold=False,
    within=None,
)


@pytest.mark.parametrize(("score", "leaves"), [("sensitivity", 1), ("magnitude", 2)])
def test_what_is_least_sensitive_leaves_not_what_is_smallest(score: str, leaves: int) -> None:
    """|w g| is 3, 0.4, 0.5; position 3 has grown, is 0 and is protected."""
    one = hand_layer([3.0, 4.0, 0.1, 0.0], [3], [-1.0, 0.1, -5.0, 7.0])
    pruned, refilled = adapt([one], replace(PER_LAYER, score=score), {})
    assert (pruned, refilled) == ([1], [0])
    expected = {0, 1, 2, 3} - {leaves}
    assert set(one.layer.keep.view(-1).nonzero().view(-1).tolist()) == expected
    assert one.layer.weight[0, leaves] == 0


def test_a_delta_makes_its_weight_less_sensitive() -> None:
    """W + d counts: 1 - 0.99 at position 1, so that its delta dies and the optimizer forgets it."""
    one = hand_layer([1.0, 1.0, 0.0], [1, 2], [1.0, 1.0, 1.0])
    layer = one.layer
    assert isinstance(layer, SeftLinear)
    with torch.no_grad():
        layer.values[0] = -0.99
    moment = torch.ones(2)
    adapt([one], PER_LAYER, {layer.values: {"exp_avg": moment}})
    assert layer.keep.tolist() == [[True, False, True]]
    assert layer.states.tolist() == [DEAD, GROWN]
    assert layer.effective_weight().tolist() == [[1, 0, 0]]
    assert moment.tolist() == [0, 1]


def test_globally_the_least_sensitive_leave_whichever_layer_they_are_in() -> None:
    gradient = [1.0, 1.0, 1.0]
    low, high = [0.1, 0.2, 0.0], [5.0, 6.0, 0.0]
    pair = [hand_layer(weights, [2], gradient) for weights in (low, high)]
    assert adapt(pair, replace(PER_LAYER, scope="global"), {})[0] == [2, 0]
    alone = [
        adapt([hand_layer(weights, [2], gradient)], PER_LAYER, {})[0] for weights in (low, high)
    ]
    assert alone == [[1], [1]]


def test_globally_the_choice_is_that_among_all_scores_of_which_few_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of a few sizes, so that ties cross layers."""
    generator, rule = torch.Generator().manual_seed(0), replace(PER_LAYER, scope="global")
    group = [
        hand_layer(torch.randint(-3, 4, (9,), generator=generator).tolist(), [8], [1.0] * 9)
        for _ in range(4)
    ]
    scored = [scores(each, rule) for each in group]
    together = torch.cat([score for _, score in scored])
    there: list[weakref.ref[Tensor]] = []

    def watched(each: Moved, rule: Adaptation) -> tuple[Tensor, Tensor]:
        assert sum(score() is not None for score in there) <= 1
        positions, score = scores(each, rule)
        there.append(weakref.ref(score))
        return positions, score

    monkeypatch.setattr(rounds, "scores", watched)
    for count in range(1, len(together) + 1):
        wanted = split(lowest(together, count), scored)
        chosen = lowest_of_group(group, rule, count)
        assert [set(p.tolist()) for p in chosen] == [set(p.tolist()) for p in wanted]


def test_a_slot_that_a_refill_revives_is_as_young_as_at_the_start() -> None:
    """It was dead for 7 steps, which the optimizer counted."""
    layer = SeftLinear(
        SparseLinear(nn.Parameter(torch.tensor([[1.0, 2.0]]), requires_grad=False), None, ALL_KEPT),
        torch.tensor([1]),
        "scatter",
        growth="all",
        untouched_candidates=False,
        refill=True,
        rewrites_base=False,
    )
    layer.prune_(torch.tensor([1]))
    window = Window(1, "rms", watched=0)
    window.observe(torch.ones(1, 2), layer)
    window.end_step(layer)
    age = torch.tensor([7], dtype=torch.int16)
    one = Moved(layer, window, torch.empty(0, dtype=torch.int64))
    assert adapt([one], replace(PER_LAYER, refill=True), {layer.values: {"step": age}})[1] == [1]
    assert layer.states.tolist() == [ON_BASE]
    assert age.tolist() == [0]


def test_with_base_only_no_delta_is_pruned_away() -> None:
    pruned = 0

    def check(one: Trial, before: list[Any], record: dict[str, Any]) -> None:
        nonlocal pruned
        assert not any(record["dead"])
        pruned += sum(record["pruned"])

    over_random_rounds(check, candidates="base_only", growth="all")
    assert pruned > ROUNDS


def test_excluded_deltas_are_no_candidates() -> None:
    """Also where their gradient is the largest; a dead slot's position is one again."""
    base = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    layer = SeftLinear(
        SparseLinear(nn.Parameter(base, requires_grad=False), None, base != 0),
        torch.tensor([0, 1]),
        "scatter",
        growth="all",
        untouched_candidates=True,
        refill=False,
        rewrites_base=False,
    )
    layer.prune_(torch.tensor([1]))
    window = Window(2, None, watched=0)
    window.observe(torch.tensor([[9.0, 4.0, 1.0, 2.0]]), layer)
    assert window.candidates is not None
    assert sorted(window.candidates.tolist()) == [1, 3]

"""The rule of a verdict on made-up window losses, and the choice by validation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsemend.sweep.arena.interval import Ratio
from sparsemend.sweep.claims.choice import BRACKET, SPREAD, TrialRule, best_value, between, bracket
from sparsemend.sweep.claims.verdict import (
    FAILS,
    HOLDS,
    MIXED,
    OPEN,
    effect_of,
    overall,
    pooled_effect,
    verdict,
    with_collapses,
)

WINDOWS = np.linspace(2.0, 4.0, 8)  # losses that differ by window
NOISE = np.array([0.3, -0.3, 0.2, -0.2, 0.1, -0.1, 0.25, -0.25])  # mean 0


def sides(shift: float, spread: float) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """(ours, rival) of two seeds: ours differs by `shift`, and by window by `spread` of NOISE."""
    rival = {0: WINDOWS, 1: WINDOWS + 0.5}
    return {seed: losses + shift + spread * NOISE for seed, losses in rival.items()}, rival


@pytest.mark.parametrize(
    ("shift", "spread", "expected"),
    [(-0.1, 0.1, HOLDS), (0.1, 0.1, FAILS), (-0.02, 1.0, OPEN), (0.02, 1.0, OPEN)],
)
def test_the_whole_interval_decides(shift: float, spread: float, expected: str) -> None:
    found = effect_of(*sides(shift, spread))
    assert found is not None
    effect, seeds = found
    assert seeds == (0, 1)
    assert effect.mean == pytest.approx(math.exp(shift))
    assert verdict(effect, 1.0) == expected


def test_a_bound_of_its_own_moves_the_verdict() -> None:
    effect = Ratio(1.005, 1.002, 1.008)
    assert [verdict(effect, bound) for bound in (1.0, 1.005, 1.01)] == [FAILS, OPEN, HOLDS]


def test_only_seeds_of_both_sides_are_compared() -> None:
    ours, rival = sides(-0.1, 0.0)
    found = effect_of({**ours, 2: WINDOWS}, rival)
    assert found is not None
    assert found[1] == (0, 1)
    assert effect_of({2: WINDOWS}, rival) is None
    assert effect_of({0: WINDOWS + math.inf}, {0: WINDOWS}) is None  # a collapsed model


def test_a_number_a_run_is_compared_over_seeds() -> None:
    """Seconds of three seeds: half of the rival's in each."""
    rival = {seed: np.log([8.0 + seed]) for seed in range(3)}
    found = effect_of({seed: value - math.log(2) for seed, value in rival.items()}, rival)
    assert found is not None
    assert (found[0].low, found[0].mean, found[0].high) == pytest.approx((0.5, 0.5, 0.5))
    one = {0: rival[0]}
    assert effect_of(one, one) is None  # a single number has no interval


def test_settings_are_pooled_by_their_mean_logarithm() -> None:
    found = pooled_effect([sides(-0.3, 0.0), sides(0.1, 0.0)])
    assert found is not None
    assert found[0].mean == pytest.approx(math.exp(-0.1))
    less = ({0: WINDOWS}, {0: WINDOWS})  # a setting with one seed of the two
    pooled = pooled_effect([sides(-0.3, 0.0), less])
    assert pooled is not None
    assert pooled[1] == (0,)
    assert pooled_effect([sides(0.0, 0.0), ({5: WINDOWS}, {5: WINDOWS})]) is None


def test_validation_chooses_the_lowest_and_on_ties_the_smaller() -> None:
    assert best_value({0.3: 5.0, 0.1: 4.0, 0.2: 4.0, 0.4: math.inf}) == 0.1
    assert best_value({0.3: math.nan}) is None


@pytest.mark.parametrize(
    ("least", "tried"),
    [
        (1.0, [1 / 3, 1.0, 3.0]),
        (1 / 3, [1 / 9, 1 / 3, 1.0]),
        (9.0, [1 / 3, 1.0, 3.0, 9.0, 27.0]),
        (1e6, [1 / 3, 1.0, 3.0, 9.0, 27.0, 81.0]),  # as many as are allowed
    ],
)
def test_a_bracket_ends_when_both_neighbours_are_worse(least: float, tried: list[float]) -> None:
    found = bracket(1.0, 3.0, lambda value: abs(math.log(value / least)), most=6)
    assert list(found) == pytest.approx(tried, rel=1e-5)


@pytest.mark.parametrize(
    ("finite_below", "tried"),
    [
        (0.2, [1 / 81, 1 / 27, 1 / 9, 1 / 3, 1]),  # 1/27 is best, between a worse and a better
        (0.0, [3.0**-k for k in range(7, -1, -1)]),  # as many as are allowed
    ],
)
def test_a_bracket_goes_lower_while_no_trial_ends(finite_below: float, tried: list[float]) -> None:
    """The best of the finite ones is 1/27."""

    def objective(value: float) -> float:
        return abs(math.log(27 * value)) if value < finite_below else math.inf

    assert list(bracket(1.0, 3.0, objective, most=8)) == pytest.approx(tried, rel=1e-5)


def test_a_failed_neighbour_encloses_the_best_value() -> None:
    trials = TrialRule(BRACKET)
    assert not trials.at_edge(0.1, {0.03: 2.0, 0.1: 1.0, 0.3: math.inf})
    assert trials.at_edge(0.1, {0.1: 1.0, 0.3: math.inf})
    assert trials.at_edge(0.3, {0.1: 1.0, 0.3: 0.5})


def test_a_spread_has_no_edge_at_its_bound() -> None:
    trials = TrialRule(SPREAD, 3)
    assert not trials.at_edge(0.3, {0.1: 1.0, 0.2: 0.7, 0.3: 0.5})
    assert trials.at_edge(0.1, {0.1: 1.0, 0.2: 1.7, 0.3: 2.5})


@pytest.mark.parametrize(
    ("judged", "ours", "rival", "expected"),
    [
        (HOLDS, 1, 0, OPEN),
        (HOLDS, 0, 1, HOLDS),
        (FAILS, 1, 0, FAILS),
        (FAILS, 0, 1, OPEN),
        (None, 2, 0, FAILS),
        (None, 0, 2, HOLDS),
        (None, 1, 1, OPEN),
        (None, 0, 0, OPEN),
    ],
)
def test_a_collapse_takes_away_a_verdict_to_the_contrary(
    judged: str | None, ours: int, rival: int, expected: str
) -> None:
    assert with_collapses(judged, ours=ours, rival=rival) == expected


@pytest.mark.parametrize(
    ("pooled", "settings", "expected"),
    [
        (HOLDS, [HOLDS, OPEN], HOLDS),
        (HOLDS, [HOLDS, FAILS], MIXED),
        (HOLDS, [FAILS, OPEN], MIXED),
        (FAILS, [HOLDS, OPEN], MIXED),
        (OPEN, [HOLDS, FAILS], MIXED),
        (OPEN, [HOLDS, HOLDS], OPEN),
        (None, [HOLDS, HOLDS], HOLDS),
        (None, [HOLDS, OPEN], OPEN),
    ],
)
def test_a_verdict_over_settings_is_none_that_a_setting_contradicts(
    pooled: str | None, settings: list[str], expected: str
) -> None:
    assert overall(pooled, settings) == expected


def test_listed_values_are_tried_once_in_their_order() -> None:
    asked: list[float] = []
    TrialRule((3.0, 1.0)).try_each([3.0, 1.0, 3.0], lambda value: asked.append(value) or value)
    assert asked == [3.0, 1.0]


# objectives of 1, 2, ... 6, and how many are tried
@pytest.mark.parametrize(
    ("objectives", "asked"),
    [
        ([5.0, 4.0, 3.0, 3.5, 3.2, 1.0], 5),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3),
        ([5.0, 4.0, 3.0, 3.5, 2.0, 2.5], 6),
        ([math.inf, math.inf, math.inf, 1.0, math.inf, 1.5], 6),
    ],
)
def test_a_spread_ends_where_two_in_a_row_are_worse(objectives: list[float], asked: int) -> None:
    trials = TrialRule(SPREAD, 6, stop_after=2)
    tried = trials.try_each([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], lambda v: objectives[int(v) - 1])
    assert list(tried.values()) == objectives[:asked]
    assert trials.are_over(tried)
    assert not trials.are_over(dict(list(tried.items())[: asked - 1]))
    assert len(TrialRule(SPREAD, 6).try_each(list(range(6)), lambda v: objectives[int(v)])) == 6


def test_a_parabola_says_what_lies_between_the_values() -> None:
    """log objective = 0.2 (log value - log 0.005)^2 + 1, whose least is e."""
    values = [0.001, 0.003, 0.009]
    objectives = {v: math.exp(0.2 * math.log(v / 0.005) ** 2 + 1) for v in values}
    found = between(objectives)
    assert found == pytest.approx((0.005, math.e / objectives[0.003]), rel=1e-9)
    assert between(objectives | {0.027: 1.0}) is None  # the best is at the edge
    assert between(objectives | {0.009: math.inf}) is None
    assert between(dict.fromkeys(values, 2.0)) is None


def test_an_effect_that_all_windows_share_has_no_spread_where_they_count_unequally() -> None:
    """Examples of a task with 4 to 60 labelled tokens, whose losses differ by ln 0.7 in each."""
    weights = np.linspace(4.0, 60.0, 8)
    ours, rival = sides(math.log(0.7), 0.0)
    for found in (effect_of(ours, rival, weights), pooled_effect([(ours, rival)] * 2, weights)):
        assert found is not None
        assert (found[0].low, found[0].high) == pytest.approx((0.7, 0.7))


def test_a_window_counts_by_its_weight() -> None:
    ours, rival = {0: np.array([1.0, 3.0])}, {0: np.array([2.0, 3.0])}
    found = effect_of(ours, rival, np.array([3.0, 1.0]))
    assert found is not None
    assert found[0].mean == pytest.approx(math.exp(-0.75))

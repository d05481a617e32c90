"""Ramp, steps, ranks and what is refused: golden values of the sheet, and by hand."""

from __future__ import annotations

import math

import pytest

from sparsemend.method.losa.plan import (
    RankPlan,
    allocate_ranks,
    check_fixed_pattern,
    check_slices,
    cubic_ramp,
    round_steps,
    round_targets,
)
from sparsemend.sparse.pattern import Pattern

ONE_PASS = RankPlan(6.0, 1.0, 1, 16, "single_pass")
UNTIL_MET = RankPlan(6.0, 1.0, 1, 16, "until_met")


def test_the_ramp_is_cubic_and_ends_exactly() -> None:
    fractions = [0.488, 0.784, 0.936, 0.992, 1.0]
    assert cubic_ramp(0.7, 5) == pytest.approx([0.7 * f for f in fractions], abs=1e-12)
    assert cubic_ramp(0.7, 5)[-1] == 0.7
    assert cubic_ramp(0.6, 1) == [0.6]


@pytest.mark.parametrize(
    ("errors", "released", "met"),
    [
        ([1, 1, 1, 1], [6, 6, 6, 6], [6, 6, 6, 6]),
        ([1, 2, 3, 4], [2, 5, 7, 10], [2, 5, 7, 10]),
        # the sum is 22, not 24; further passes give what is missing to the earlier of equal blocks
        ([100, 1, 1, 1], [16, 2, 2, 2], [16, 3, 3, 2]),
        ([1e-6, 1, 1, 1000], [2, 2, 2, 16], [2, 3, 3, 16]),
        ([0, 0, 0, 0], [6, 6, 6, 6], [6, 6, 6, 6]),
    ],
)
def test_ranks_follow_errors(errors: list[float], released: list[int], met: list[int]) -> None:
    assert allocate_ranks(errors, 6.0, ONE_PASS) == released
    assert allocate_ranks(errors, 6.0, UNTIL_MET) == met


def test_halves_round_to_even_and_the_least_error_pays_for_the_excess() -> None:
    # shares of 8: 1.5, 1.5, 2.5, 2.5 round to 2, 2, 2, 2
    assert allocate_ranks([3, 3, 5, 5], 2.0, ONE_PASS) == [2, 2, 2, 2]
    # 1.75, 1.75, 3.5 of 7 round to 2, 2, 4: one too many, from the first of the least
    assert allocate_ranks([1, 1, 2], 7 / 3, ONE_PASS) == [1, 2, 4]


def test_a_budget_beyond_the_limits_stops_at_them() -> None:
    plan = RankPlan(2.0, 0.0, 1, 4, "until_met")
    assert allocate_ranks([1e9, 0, 0, 0], 4.0, plan) == [4, 4, 4, 4]


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_block_error_that_is_not_finite_is_named(error: float) -> None:
    with pytest.raises(
        ValueError, match=rf"the error of block 1 against the dense model is {error}"
    ):
        allocate_ranks([1.0, error, 2.0], 4.0, ONE_PASS)


def test_steps_are_shared_and_the_later_rounds_get_the_rest() -> None:
    assert round_steps(None, 300, 5) == [60] * 5
    assert round_steps(None, 3, 2) == [1, 2]
    assert round_steps([125, 125, 125, 125, 750], 1250, 5) == [125, 125, 125, 125, 750]


def test_too_few_or_contradicting_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_steps=3 is less than a step for each of .*=5"):
        round_steps(None, 3, 5)
    for given in ([1, 2], [1, 2, 0], [1, 2, 4]):
        with pytest.raises(ValueError, match="are not 3 positive counts that add up to"):
            round_steps(given, 6, 3)


def test_given_targets_rise_to_the_sparsity() -> None:
    assert round_targets([0.3, 0.5, 0.6], 0.6, 3) == [0.3, 0.5, 0.6]
    with pytest.raises(ValueError, match=r"0\.4 of round 3 is below the 0\.5 that the round"):
        round_targets([0.3, 0.5, 0.4], 0.4, 3)
    with pytest.raises(ValueError, match=r"ends at 0\.6, not at sparsity=0\.7"):
        round_targets([0.3, 0.5, 0.6], 0.7, 3)
    with pytest.raises(ValueError, match=r"has 2 sparsities for method\.rounds=3"):
        round_targets([0.3, 0.6], 0.6, 3)


def test_a_mean_rank_outside_the_limits_is_refused_with_its_round() -> None:
    with pytest.raises(ValueError, match=r"mean rank 1 of round 1 is below method\.min_rank=2"):
        RankPlan(1.0, 1.0, 2, 16, "until_met").check(5)
    with pytest.raises(ValueError, match=r"mean rank 17 of round 5 is above method\.max_rank=16"):
        RankPlan(13.0, 1.0, 1, 16, "until_met").check(5)
    with pytest.raises(ValueError, match="1 <= min_rank <= max_rank"):
        RankPlan(6.0, 1.0, 0, 16, "until_met").check(5)


def test_slices_must_be_one_per_round_and_within_the_rows() -> None:
    check_slices(None, 5, 10)
    check_slices([[0, 5], [5, 10]], 2, 10)
    with pytest.raises(ValueError, match="round 2 reads up to row 11, but there are 10"):
        check_slices([[0, 5], [5, 11]], 2, 10)
    for slices in ([[0, 5]], [[0, 5], [5, 5]], [[-1, 5], [5, 10]], [[0, 5], [5]]):
        with pytest.raises(ValueError, match=r"is not one \[first, end\)"):
            check_slices(slices, 2)


@pytest.mark.parametrize(
    ("pattern", "fixed", "words"),
    [
        ("2:4", False, r"use pattern=unstructured, or method\.fixed_pattern=true"),
        ("mixed:8", False, "use pattern=unstructured$"),
        ("mixed:8", True, "use pattern=unstructured$"),
        ("unstructured", True, "needs an N:M pattern"),
    ],
)
def test_patterns_that_rounds_cannot_have_are_refused(
    pattern: str, fixed: bool, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_fixed_pattern(Pattern.parse(pattern), fixed=fixed)


def test_a_fixed_pattern_is_accepted_when_asked_for() -> None:
    check_fixed_pattern(Pattern.parse("2:4"), fixed=True)
    check_fixed_pattern(Pattern.parse("unstructured"), fixed=False)

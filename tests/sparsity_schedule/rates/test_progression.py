"""Whole N of M for blocks along a progression of rates."""

from __future__ import annotations

import random

import pytest

from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import mixed_tolerance
from sparsemend.sparsity_schedule.rates.budget import weighted_mean
from sparsemend.sparsity_schedule.rates.progression import (
    bound,
    check_difference,
    mixed_kept,
    rates,
)


def test_largest_remainders_get_the_last_inputs() -> None:
    assert mixed_kept([0.4, 0.5, 0.6], 8, 0.5) == [5, 4, 3]


def test_blocks_of_unequal_size_keep_the_mean_over_their_weights() -> None:
    rates, weights = [0.7, 0.5, 0.48], [1, 10, 10]  # N of 2.4, 4 and 4.16; their mean is 0.5
    assert mixed_kept(rates, 8, 0.5) == [3, 4, 5]  # whose mean is 0.446
    assert mixed_kept(rates, 8, 0.5, weights) == [3, 4, 4]  # 0.506, and no N is one off its own


def test_two_blocks_of_unequal_size_are_moved_against_each_other() -> None:
    rates, weights = [0.575, 0.44], [9, 12]
    assert mixed_kept(rates, 8, 0.5) == [3, 5]  # whose mean is 0.482
    assert mixed_kept(rates, 8, 0.5, weights) == [4, 4]


def test_blocks_of_one_size_are_rounded_as_without_it() -> None:
    for spread in (0.0, 0.07, 0.13, 0.2):
        rates = [0.55 - spread, 0.5, 0.55 + spread, 0.44]
        assert mixed_kept(rates, 8, 0.51, [7] * 4) == mixed_kept(rates, 8, 0.51)


def test_a_sparsity_that_leaves_less_than_one_input_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep 1 of every 8 inputs .* lower it to 0\.875"):
        mixed_kept([0.95] * 3, 8, 0.95)


def test_a_large_first_block_narrows_the_bound_of_rising_rates() -> None:
    # c = (1 + ... + 7) / 11, so that block 7 is 49/11 steps above the mean
    weights = [4, 1, 1, 1, 1, 1, 1, 1]
    assert bound(0.7, 8, weights) == pytest.approx(0.3 / (49 / 11))  # 0.0674
    assert bound(0.7, 8, weights, falling=True) == pytest.approx(0.3 / (28 / 11))
    assert bound(0.7, 8) == bound(0.7, 8, [1] * 8, falling=True) == 2 * (1 - 0.7) / 7


@pytest.mark.parametrize("weights", [[4, 1, 1, 1], [1, 1, 9], [1, 2, 3, 4, 5], [7, 1]])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_bound_is_where_the_first_rate_reaches_an_end(
    weights: list[int], sparsity: float, sign: int
) -> None:
    blocks = len(weights)
    limit = sign * bound(sparsity, blocks, weights, falling=sign < 0)
    ends = rates(limit, sparsity, blocks, weights)
    assert min(min(ends), 1 - max(ends)) == pytest.approx(0, abs=1e-12)
    check_difference(limit, sparsity, blocks, weights)
    with pytest.raises(ValueError, match=r"takes a block's rate out of \[0, 1\]"):
        check_difference(1.01 * limit, sparsity, blocks, weights)


def test_a_mixed_pattern_narrows_the_bound_to_one_input_of_every_group() -> None:
    most = Pattern.parse("mixed:8").largest_rate
    assert most == 7 / 8
    assert bound(0.7, 8, most=most) == pytest.approx(2 * 0.175 / 7)
    weights = [4, 1, 1, 1, 1, 1, 1, 1]
    assert bound(0.7, 8, weights, most=most) == pytest.approx(0.175 / (49 / 11))
    assert bound(0.2, 8, weights, most=most) == bound(0.2, 8, weights)  # a dense first block binds
    with pytest.raises(ValueError, match=r"min\(s, 0\.875-s\).* keeps 1 of every 8"):
        check_difference(0.06, 0.7, 8, most=most)
    with pytest.raises(ValueError, match=r"out of \[0, 0\.875\] \(a mixed pattern keeps 1 of eve"):
        check_difference(0.05, 0.7, 8, weights, most=most)


def test_blocks_of_any_size_keep_a_mixed_budget_up_to_the_bound() -> None:
    draw = random.Random(0)
    for _ in range(500):
        pattern = Pattern.parse(f"mixed:{draw.choice((4, 8, 16))}")
        most, size = pattern.largest_rate, pattern.group_size
        weights = [draw.randint(1, 10000) for _ in range(draw.choice((2, 3, 8)))]
        sparsity, falling = draw.uniform(0.05, most), draw.random() < 0.5
        limit = bound(sparsity, len(weights), weights, falling=falling, most=most)
        difference = draw.choice((0, 0.5, 1)) * limit * (-1 if falling else 1)
        block_rates = rates(difference, sparsity, len(weights), weights)
        kept = mixed_kept(block_rates, size, sparsity, weights)
        mean = weighted_mean([1 - n / size for n in kept], weights)
        assert abs(mean - sparsity) <= mixed_tolerance(pattern, weights), (weights, sparsity)
        assert all(abs(n - size * (1 - r)) < 1 for n, r in zip(kept, block_rates, strict=True))

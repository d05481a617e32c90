"""Whole N of M for blocks along a progression of rates."""

from __future__ import annotations

import pytest

from sparsemend.sparsity_schedule.rates.progression import mixed_kept


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

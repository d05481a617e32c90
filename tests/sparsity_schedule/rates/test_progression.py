"""Whole N of M for blocks along a progression of rates."""

from __future__ import annotations

import pytest

from sparsemend.sparsity_schedule.rates.progression import mixed_kept


def test_largest_remainders_get_the_last_inputs() -> None:
    assert mixed_kept([0.4, 0.5, 0.6], 8, 0.5) == [5, 4, 3]


def test_a_sparsity_that_leaves_less_than_one_input_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep 1 of every 8 inputs .* lower it to 0\.875"):
        mixed_kept([0.95] * 3, 8, 0.95)

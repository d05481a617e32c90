import math

import pytest

from sparsemend.sparsity_schedule.rates.budget import (
    centre,
    to_budget,
    unit_interval,
    weighted_mean,
)


def test_rates_that_keep_the_budget_come_back_bit_for_bit() -> None:
    rates = [0.1 + 0.2, 0.5, 0.7]
    assert to_budget(rates, [1, 1, 1], sum(rates) / 3, 0.0, 1.0) == rates


def test_a_clipped_rate_is_paid_for_by_the_others() -> None:
    # 1.2 -> 1 leaves 0.2 for two others of equal size: 0.1 each
    found = to_budget([1.2, 0.5, 0.4], [10, 10, 10], 0.7, 0.0, 1.0)
    assert found == pytest.approx([1.0, 0.6, 0.5], abs=1e-12)


def test_a_large_unit_takes_its_share_of_the_shift() -> None:
    # 0.1 too much in 10 weights is 1 weight, which 30 others make up with 1/30 each
    found = to_budget([1.1, 0.4], [10, 30], (11 + 12) / 40, 0.0, 1.0)
    assert found == pytest.approx([1.0, 0.4 + 1 / 30], abs=1e-12)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_the_budget_is_exact_whatever_leaves_the_limits(target: float) -> None:
    rates = [math.sin(i * 1.7) * 1.5 + target for i in range(40)]
    weights = [1000 + 37 * i * i for i in range(40)]
    found = to_budget(rates, weights, target, 0.1, 0.9)
    assert min(found) >= 0.1
    assert max(found) <= 0.9
    assert weighted_mean(found, weights) == pytest.approx(target, abs=1e-12)
    order = sorted(range(40), key=lambda i: rates[i])
    assert [found[i] for i in order] == sorted(found)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_at_either_end_nothing_or_everything_goes(target: float) -> None:
    assert to_budget([0.3, 0.6, -0.2], [1, 2, 3], target, 0.0, 1.0) == [target] * 3


def test_a_target_outside_the_limits_is_refused_with_them() -> None:
    with pytest.raises(ValueError, match=r"sparsity 0\.7 is not in \[0\.1, 0\.6\]"):
        to_budget([0.7], [1], 0.7, 0.1, 0.6)


def test_the_centred_map_spans_the_span_around_a_weighted_mean() -> None:
    rates = centre([0.0, 0.25, 1.0], 0.2, 0.6, [10, 20, 70])
    assert rates[0] - rates[2] == pytest.approx(0.2)
    assert weighted_mean(rates, [10, 20, 70]) == pytest.approx(0.6, abs=1e-15)


def test_equal_scores_are_no_division_by_zero() -> None:
    assert unit_interval([3.0, 3.0]) == [0.0, 0.0]


def test_a_score_without_a_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="score nan of unit 1 has no rank"):
        unit_interval([1.0, math.nan])

"""Importance, delta, and both solvers: golden values, brute force, bounds."""

from __future__ import annotations

import itertools
import random

import pytest

from sparsemend.sparsity_schedule.rates.block_rates import (
    Band,
    delta_of,
    exact_rates,
    importance,
    slsqp_rates,
    solve,
    weighted_sum,
)

# worked by hand in the sheet of the reference code
SIMILARITY = [[1, 0.2, 0.1, 0.1], [0.2, 1, 0.8, 0.5], [0.1, 0.8, 1, 0.9], [0.1, 0.5, 0.9, 1]]
EQUAL = [1] * 4


def test_importance_falls_with_the_share_of_similarity() -> None:
    expected = [0.925961, 0.749416, 0.707404, 0.749416]
    assert importance(SIMILARITY, 1.0) == pytest.approx(expected, abs=1e-6)
    assert importance(SIMILARITY, 100.0)[0] == pytest.approx(0.000456, abs=1e-6)


def test_blocks_that_resemble_nothing_are_equally_important() -> None:
    assert importance([[1.0]], 1.0) == [1.0]
    assert importance([[1.0, 0.0], [0.0, 1.0]], 1.0) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("beta", "target", "delta", "expected"),
    [
        (1.0, 0.5, 0.01, [0.49, 0.50, 0.51, 0.50]),
        (1.0, 0.7, 0.03, [0.67, 0.70, 0.73, 0.70]),
        (100.0, 0.5, 0.01, [0.499658, 0.500114, 0.500114, 0.500114]),
    ],
)
def test_slsqp_stops_where_the_reference_does(
    beta: float, target: float, delta: float, expected: list[float]
) -> None:
    rates = slsqp_rates(Band(target, delta, EQUAL), importance(SIMILARITY, beta))
    assert rates == pytest.approx(expected, abs=1e-5)
    assert sum(rates) / 4 == pytest.approx(target, abs=1e-9)


def test_the_exact_solution_saturates_and_breaks_ties_for_the_earlier_block() -> None:
    rates = exact_rates(Band(0.5, 0.01, EQUAL), importance(SIMILARITY, 100.0))
    assert rates == pytest.approx([0.49, 0.49, 0.51, 0.51], abs=1e-12)


def test_an_odd_number_of_blocks_leaves_the_median_at_the_mean() -> None:
    assert exact_rates(Band(0.7, 0.03, [1] * 3), [0.9, 0.1, 0.5]) == pytest.approx(
        [0.67, 0.73, 0.7], abs=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_exact_solution_is_the_best_of_all_vertices(seed: int) -> None:
    """A linear program's optimum is at a vertex: all but one block at a bound."""
    draw = random.Random(seed)
    count = draw.randint(2, 6)
    weights = [draw.randint(1, 9) for _ in range(count)]
    floors = [draw.uniform(0.0, 0.61) for _ in range(count)]
    band = Band(0.6, 0.05, weights, floors)
    costs = [draw.random() for _ in range(count)]
    best = min(cost_of(x, band, costs) for x in vertices(band))
    found = exact_rates(band, costs)
    assert band.mean(found) == pytest.approx(0.6, abs=1e-9)
    for rate, low, high in zip(found, band.lower, band.upper, strict=True):
        assert low <= rate <= high
    assert cost_of(found, band, costs) == pytest.approx(best, abs=1e-12)


def cost_of(rates: list[float], band: Band, costs: list[float]) -> float:
    return weighted_sum([c * x for c, x in zip(costs, rates, strict=True)], band.weights)


def vertices(band: Band) -> list[list[float]]:
    bounds = list(zip(band.lower, band.upper, strict=True))
    found = []
    for free, (low, high) in enumerate(bounds):
        others = [pair if i != free else (0.0,) for i, pair in enumerate(bounds)]
        for chosen in itertools.product(*others):
            rest = band.target * sum(band.weights) - weighted_sum(chosen, band.weights)
            value = rest / band.weights[free]
            if low - 1e-12 <= value <= high + 1e-12:
                found.append([value if i == free else x for i, x in enumerate(chosen)])
    return found


def test_delta_grows_with_the_target_and_is_carried_over_above() -> None:
    assert [delta_of(s) for s in (0.3, 0.5, 0.55, 0.6, 0.65, 0.7)] == [
        *(0.01, 0.01, 0.02, 0.02, 0.03, 0.03)
    ]
    assert delta_of(0.9) == 0.03
    assert delta_of(0.9, previous=0.01) == 0.01


def test_floors_are_kept_and_the_mean_still_holds() -> None:
    # blocks 0 and 1 are at 0.506 already; the cheapest are 0 and 1, the dearest 2 and 3
    band = Band(0.5, 0.01, EQUAL, [0.486, 0.486, 0.506, 0.506])
    rates = solve(band, [0.1, 0.2, 0.8, 0.9], "lp")
    assert rates[2] >= 0.506
    assert rates[3] >= 0.506
    assert sum(rates) / 4 == pytest.approx(0.5, abs=1e-9)


def test_a_target_below_what_was_reached_is_refused_with_the_least_mean() -> None:
    words = r"0\.400000 is below what the blocks have reached .*0\.45"
    with pytest.raises(ValueError, match=words):
        solve(Band(0.4, 0.01, [1, 1], [0.5, 0.4]), [1.0, 1.0], "lp")


def test_a_block_without_weights_is_left_out() -> None:
    assert exact_rates(Band(0.6, 0.0, [0, 10, 10]), [0.1, 0.2, 0.3]) == [0.6] * 3
    rates = exact_rates(Band(0.6, 0.1, [0, 10, 10]), [0.1, 0.2, 0.3])
    assert rates[1:] == pytest.approx([0.7, 0.5])


def test_the_band_ends_at_zero_and_one() -> None:
    assert exact_rates(Band(0.01, 0.03, [1, 1]), [0.1, 0.9]) == pytest.approx([0.02, 0.0])
    assert exact_rates(Band(0.99, 0.03, [1, 1]), [0.1, 0.9]) == pytest.approx([1.0, 0.98])
    mixed = Band(0.85, 0.1, [1, 1], most=0.875)  # of mixed:8
    assert exact_rates(mixed, [0.1, 0.9]) == pytest.approx([0.875, 0.825])

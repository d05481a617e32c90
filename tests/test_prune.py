"""The one prune loop, and the budget of whole weights."""

from __future__ import annotations

import pytest

from sparsemend.prune import exact_zeros


def test_an_exact_budget_gives_what_is_missing_to_the_largest_remainders() -> None:
    # 2.5 + 1.75 + 2.75 = 7: whole parts 2 + 1 + 2, and two more for .75 and .75
    rates, sizes = {"a": 0.25, "b": 0.35, "c": 0.55}, {"a": 10, "b": 5, "c": 5}
    assert exact_zeros(rates, sizes) == {"a": 2, "b": 2, "c": 3}


def test_an_exact_budget_leaves_whole_products_alone() -> None:
    sizes = dict.fromkeys("abc", 100)
    assert exact_zeros(dict.fromkeys(sizes, 0.29), sizes) == dict.fromkeys(sizes, 29)


@pytest.mark.parametrize("target", [0.0, 0.1, 1 / 3, 0.7, 0.999])
def test_an_exact_budget_is_met_to_one_weight(target: float) -> None:
    sizes = {str(i): 4097 + 1013 * i for i in range(32)}
    rates = {n: min(1.0, max(0.0, target + 0.01 * (-1) ** int(n))) for n in sizes}
    wanted = sum(rates[n] * sizes[n] for n in sizes)
    zeros = exact_zeros(rates, sizes)
    assert abs(sum(zeros.values()) - wanted) <= 0.5 + 1e-6
    assert all(abs(zeros[n] - rates[n] * sizes[n]) < 1 for n in sizes)

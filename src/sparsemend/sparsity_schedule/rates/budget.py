"""Rates that keep a budget, free of torch.

A map of scores may leave [low, high].  The published codes then clip, or fail, and miss the
target; here the clipped rates are moved together until their weighted mean is the target again:

    s_b := clip(s_b + mu, low, high)   with   sum n_b s_b = S sum n_b
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """sum n v / sum n in float64."""
    total = sum(weights)
    return math.fsum(v * n for v, n in zip(values, weights, strict=True)) / total


def unit_interval(scores: Sequence[float]) -> list[float]:
    """(x - min) / (max - min); all 0 where the scores do not differ (the references divide by 0).

    Raises ValueError on a score that is NaN or infinite.
    """
    bad = [index for index, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        raise ValueError(f"score {scores[bad[0]]} of unit {bad[0]} has no rank; check the weights")
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 0.0 for score in scores]


def centre(
    importance: Sequence[float], span: float, target: float, weights: Sequence[int]
) -> list[float]:
    """1 - (t_b - mean(t) + 1 - S), t_b = span * importance in [0, 1]: the map of OWL and DLP.

    The rates span exactly `span`, their weighted mean is exactly `target`, and the most important
    unit stays the densest; they may leave [0, 1].
    """
    shares = [value * span for value in importance]
    mean = weighted_mean(shares, weights)
    return [1 - (share - mean + (1 - target)) for share in shares]


def to_budget(
    rates: Sequence[float], weights: Sequence[int], target: float, low: float, high: float
) -> list[float]:
    """clip(rate + mu, low, high) with the one mu that makes the weighted mean `target`.

    Rates that keep the budget already come back as they are.  Raises ValueError unless the target
    lies in [low, high].
    """
    if not low <= target <= high:
        raise ValueError(f"sparsity {target} is not in [{low:g}, {high:g}], where every rate is")
    if target in (low, high):
        return [target] * len(rates)
    inside = all(low <= rate <= high for rate in rates)
    if inside and abs(weighted_mean(rates, weights) - target) <= 1e-12:
        return list(rates)

    def shift(mu: float) -> list[float]:
        return [min(max(rate + mu, low), high) for rate in rates]

    below, above = low - max(rates), high - min(rates)  # everything at low, everything at high
    for _ in range(100):  # halves an interval of width 3 to less than an ulp
        middle = (below + above) / 2
        if weighted_mean(shift(middle), weights) < target:
            below = middle
        else:
            above = middle
    return shift((below + above) / 2)

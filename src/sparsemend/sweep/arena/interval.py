"""Judge on the same windows which of two models is better: an interval of their mean difference.

    d_sw = loss of `other` - loss of `best` = mu + a_s + b_w + e_sw, seed s of S, test window w of W
    ratio of perplexities = exp(mean d)

Seeds a, windows b and the rest e are random effects, so that the interval covers the choice of test
windows and that of seeds.  With the mean squares A of seeds, B of windows and E of the rest, and no
component of variance below zero,

    variance of mean d = (max(A, E) + max(B, E) - E) / (S W)

(Searle, Casella and McCulloch, Variance Components, 1992, ch. 4).  The interval is Student's t with
the degrees of freedom of that sum (Satterthwaite 1946): few where seeds decide, so that two or
three of them give the wide interval that they are worth, and W - 1 where windows do.  One seed
knows nothing of how seeds differ: its interval is of windows alone.  Windows that hold unequal
numbers of tokens count by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """Perplexity of one model over that of another, with the bounds of its interval."""

    mean: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether 1 is outside the interval."""
        return not self.low <= 1 <= self.high


def perplexity_ratio(
    other: np.ndarray,
    best: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    level: float = LEVEL,
) -> Ratio:
    """Return exp(mean(other - best)) and its interval, from 0 to infinity of a single number.

    other, best: losses (S, W), fp64, paired by seed and window.  weights: how much each window
    counts in the mean, (W,), None for equal ones.  Raises ValueError where shapes differ, since
    nothing would be paired.
    """
    if other.shape != best.shape or other.ndim != 2 or not other.size:
        raise ValueError(
            f"losses of shapes {other.shape} and {best.shape} are not paired (seeds, windows); "
            "compare runs with the same seeds and the same test windows"
        )
    differences = other - best
    weights = np.ones(other.shape[1]) if weights is None else weights
    mean = differences.mean(axis=0) @ weights / weights.sum()
    # what each number adds to the mean, which is linear in them but for the weights' sum
    deviations = (differences - mean) * (weights / weights.mean())
    half = _half_width(deviations, level)
    return Ratio(*(float(np.exp(value)) for value in (mean, mean - half, mean + half)))


def _half_width(deviations: np.ndarray, level: float) -> float:
    """Half of the interval of the mean of `deviations` (S, W), which is zero."""
    seeds, windows = deviations.shape
    if deviations.size == 1:
        return float("inf")
    by_seed, by_window = (deviations.mean(axis=axis, keepdims=True) for axis in (1, 0))
    free = {"seeds": seeds - 1, "windows": windows - 1, "rest": (seeds - 1) * (windows - 1)}
    sums = {
        "seeds": windows * float((by_seed**2).sum()),
        "windows": seeds * float((by_window**2).sum()),
        "rest": float(((deviations - by_seed - by_window) ** 2).sum()),
    }
    square = {name: sums[name] / free[name] if free[name] else 0.0 for name in free}
    rest = square["rest"]
    seen = [name for name in ("seeds", "windows") if square[name] > rest]
    variance = sum(square[name] for name in seen) + (1 - len(seen)) * rest
    if not variance:
        return 0.0
    spread = sum(square[name] ** 2 / free[name] for name in (*seen, "rest") if free[name])
    quantile = stats.t.ppf((1 + level) / 2, variance**2 / spread)
    return float(quantile * np.sqrt(variance / deviations.size))

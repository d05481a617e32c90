"""Judge on the same windows which of two models is better: a paired bootstrap of the loss.

    d_sw = loss of `other` - loss of `best`, seed s, test window w
    ratio of perplexities = exp(mean d);  interval: its quantiles over resampled seeds and windows

Windows are shared by all seeds, so rows and columns of d are drawn with replacement independently
(Efron and Tibshirani 1993, ch. 8, for two-way data).  An interval without 1 shows a difference
that neither the choice of test windows nor that of seeds explains.  Windows that hold unequal
numbers of tokens count by them.  S resampled seeds vary less
than S new ones would; their deviations are multiplied by sqrt(S / (S - 1)), which corrects the
variance.  It does not correct the tails: two seeds have two draws, so that with fewer than about
five seeds the interval is narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 2_000_000  # counts held at a time


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
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Ratio:
    """Return exp(mean(other - best)) and its interval.

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
    random = np.random.default_rng(seed)
    means = _resampled_means(_widen_deviations(differences), weights, resamples, random)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Ratio(*(float(np.exp(value)) for value in (mean, low, high)))


def _widen_deviations(differences: np.ndarray) -> np.ndarray:
    """Return `differences` (S, W) with rows as far from their mean as those of new seeds."""
    seeds = len(differences)
    if seeds == 1:
        return differences
    centre: np.ndarray = differences.mean(axis=0)
    return centre + (differences - centre) * np.sqrt(seeds / (seeds - 1))


def _resampled_means(
    differences: np.ndarray, weights: np.ndarray, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """Return the means (resamples,) of `differences` (S, W) over rows and columns redrawn.

    Rows and columns are drawn with replacement; a column drawn counts by its weight (W,).
    """
    seeds, windows = differences.shape
    weighted = differences * weights
    means, step = [], max(1, CHUNK // windows)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        columns = random.multinomial(windows, np.full(windows, 1 / windows), size=count) / windows
        sums = np.einsum("bw,bw->b", rows @ weighted, columns)
        means.append(sums / (columns @ weights))
    return np.concatenate(means)

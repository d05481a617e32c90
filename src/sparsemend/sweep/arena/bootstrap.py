"""Which of two models is better, judged on the same windows: a paired bootstrap of the loss.

    d_sw = loss of `other` - loss of `best`, seed s, test window w
    ratio of perplexities = exp(mean d);  interval: its quantiles over resampled seeds and windows

Windows are shared by all seeds, so rows and columns of d are drawn with replacement independently
(Efron and Tibshirani 1993, ch. 8, for two-way data).  An interval without 1 is a difference that
neither the choice of test windows nor that of seeds explains.  S resampled seeds vary less than
S new ones would; their deviations are multiplied by sqrt(S / (S - 1)), which mends the variance.
Not the tails: two seeds have two draws, so that with less than about five the interval is narrow.
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
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Ratio:
    """exp(mean(other - best)) and its interval; both (S, W), fp64, paired by seed and window.

    Raises ValueError where the shapes differ: nothing would be paired.
    """
    if other.shape != best.shape or other.ndim != 2 or not other.size:
        raise ValueError(
            f"losses of shapes {other.shape} and {best.shape} are not paired (seeds, windows); "
            "compare runs with the same seeds and the same test windows"
        )
    apart = other - best
    means = _resampled_means(_widen_deviations(apart), resamples, np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Ratio(*(float(np.exp(value)) for value in (apart.mean(), low, high)))


def _widen_deviations(apart: np.ndarray) -> np.ndarray:
    """(S, W) with the deviations of its rows from their mean as large as those of new seeds."""
    seeds = len(apart)
    if seeds == 1:
        return apart
    centre: np.ndarray = apart.mean(axis=0)
    return centre + (apart - centre) * np.sqrt(seeds / (seeds - 1))


def _resampled_means(apart: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """(resamples,) means of `apart` (S, W), its rows and its columns drawn with replacement."""
    seeds, windows = apart.shape
    found, step = [], max(1, CHUNK // windows)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        columns = random.multinomial(windows, np.full(windows, 1 / windows), size=count) / windows
        found.append(np.einsum("bw,bw->b", rows @ apart, columns))
    return np.concatenate(found)

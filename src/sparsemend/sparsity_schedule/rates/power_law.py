"""Exponent of a power law in the tail of a spectrum, by maximum likelihood.

With eigenvalues ascending and the tail starting at index i, n = N - i (Hill's estimator):

    alpha_i = 1 + n / (sum_{k >= i} ln l_k - n ln l_i)
    D_i = max_k |1 - (l_k / l_i)^(1 - alpha_i) - k / n|,   k = 0..n-1 from the tail's start

as in AlphaPruning (Lu et al. 2024, arXiv 2410.10912) and the code it follows.  Computed in the
dtype of the eigenvalues, fp32 there.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 100  # of the histogram of log10 of the eigenvalues; authors' code
# of a share of the eigenvalues: with fewer, one bin more or less ranks the blocks of small models
# otherwise, and a bin is wider than the starts from 0.95 to 1.5 of its edge
LEAST_BINS = 10


def bins_for(bins: float, eigenvalues: int) -> int:
    """The bins of a histogram of so many eigenvalues: `bins`, or below 1 that share of them."""
    return int(bins) if bins >= 1 else max(LEAST_BINS, round(bins * eigenvalues))


def alpha_mid(spectrum: Tensor) -> float:
    """alpha at i = floor(N / 2) of an ascending spectrum (N,); raises ValueError if undefined."""
    if len(spectrum) < 2:
        raise ValueError(f"{len(spectrum)} eigenvalues above 0 have no power law")
    alpha = tail_alpha(spectrum, len(spectrum) // 2)
    if alpha == torch.inf:
        raise ValueError("the upper half of the eigenvalues are equal and have no power law")
    return alpha


def alpha_peak(spectrum: Tensor, *, logarithmic_bound: bool, bins: float = BINS) -> float:
    """alpha of the tail that fits best among those that start near the spectrum's peak.

    Starts: i <= N - 2 with lower <= l_i <= 1.5 x, x the left edge of the fullest histogram bin;
    lower = 0.95 x, or with `logarithmic_bound` log10(0.95 x), the bound in the authors' code (below
    any l_i where x < 1, so that it bounds nothing).  The best has the smallest D, the lowest i on
    ties.  Without any start the value is alpha_mid, where the authors' code returns 0.  bins: of
    the histogram, as for `bins_for`.
    """
    if len(spectrum) < 2:
        return alpha_mid(spectrum)
    edge = fullest_bin(spectrum, bins_for(bins, len(spectrum)))
    lower = torch.log10(0.95 * edge) if logarithmic_bound else 0.95 * edge
    inside = (spectrum[:-1] <= 1.5 * edge) & (spectrum[:-1] >= lower)
    best, distance = None, torch.inf
    for start in inside.nonzero().flatten().tolist():
        alpha = tail_alpha(spectrum, start)
        gap = tail_distance(spectrum, start, alpha)
        if gap < distance and alpha != torch.inf:
            best, distance = alpha, gap
    return alpha_mid(spectrum) if best is None else best


def fullest_bin(spectrum: Tensor, bins: int) -> Tensor:
    """10^(left edge) of the fullest of equal bins of log10 (the first one on ties)."""
    logarithm = spectrum.log10()
    low, high = float(logarithm.min()), float(logarithm.max())
    counts = torch.histc(logarithm, bins, min=low, max=high)
    edges = torch.linspace(low, high, bins + 1, dtype=spectrum.dtype, device=spectrum.device)
    return 10 ** edges[:-1][counts == counts.max()][0]


def tail_alpha(spectrum: Tensor, start: int) -> float:
    """alpha_i; infinite where the whole tail is one value."""
    tail = spectrum[start:].log()
    excess = float(tail.sum() - len(tail) * tail[0])
    return 1 + len(tail) / excess if excess > 0 else float("inf")


def tail_distance(spectrum: Tensor, start: int, alpha: float) -> float:
    """D_i, the largest gap of the tail's fitted to its empirical distribution; 1 if alpha <= 1."""
    if not 1 < alpha < float("inf"):
        return 1.0
    tail = spectrum[start:]
    empirical = torch.arange(len(tail), dtype=tail.dtype, device=tail.device) / len(tail)
    fitted = 1 - (tail / tail[0]) ** (1 - alpha)
    return float((fitted - empirical).abs().max())

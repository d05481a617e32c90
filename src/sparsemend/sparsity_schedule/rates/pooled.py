"""Rates from one threshold over the pooled scores of all linears (Global, LAMP).

The threshold is exact and nothing is concatenated: scores are fp32 and not negative, so their bit
patterns rank as they do; one pass counts the upper 16 bits of every matrix, a second one the lower
16 bits inside the bucket in which the threshold lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

HALF = 16
BUCKETS = 2**HALF


def lowest_counts(scores: Callable[[], Iterable[Tensor]], count: int) -> list[int]:
    """Number of the `count` lowest of all scores in each matrix; ties go to the earlier matrix.

    scores() yields all matrices, fp32, finite, >= 0; it is called twice.
    """
    upper = torch.stack([_histogram(_bits(score) >> HALF) for score in scores()])
    bucket = _crossing(upper.sum(dim=0), count)
    below = upper[:, :bucket].sum(dim=1)
    lower = torch.stack([_histogram(_inside(_bits(score), bucket)) for score in scores()])
    value = _crossing(lower.sum(dim=0), count - int(below.sum()))
    below += lower[:, :value].sum(dim=1)
    missing = count - int(below.sum())
    counts = []
    for certain, tied in zip(below.tolist(), lower[:, value].tolist(), strict=True):
        taken = min(tied, missing)
        missing -= taken
        counts.append(certain + taken)
    return counts


def _bits(score: Tensor) -> Tensor:
    """The bit patterns of the scores, int32 (n,), which rank as the scores do."""
    return (score.flatten().float() + 0.0).view(torch.int32)  # + 0.0 makes a -0.0 a 0.0


def _inside(bits: Tensor, bucket: int) -> Tensor:
    return bits[bits >> HALF == bucket] & (BUCKETS - 1)


def _histogram(values: Tensor) -> Tensor:
    return torch.bincount(values, minlength=BUCKETS).cpu()


def _crossing(histogram: Tensor, count: int) -> int:
    """Index of the first entry at which the running sum of `histogram` reaches `count`."""
    running = histogram.cumsum(dim=0)
    return int(torch.searchsorted(running, torch.tensor(count)).clamp(max=len(running) - 1))

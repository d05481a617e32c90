"""Rates from one threshold over the pooled scores of all linears (Global, LAMP).

The threshold is exact and nothing is concatenated: scores are fp32 and not negative, so their bit
patterns rank as they do; one pass counts the upper 16 bits of every matrix, a second one the lower
16 bits inside the bucket in which the threshold lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sparsemend.sparse.histogram import BUCKETS, HALF, bucket_counts, crossing


def lowest_counts(scores: Callable[[], Iterable[Tensor]], count: int) -> list[int]:
    """Number of the `count` lowest of all scores in each matrix; ties go to the earlier matrix.

    scores() yields all matrices, fp32, finite, >= 0; it is called twice.
    """
    upper = torch.stack([bucket_counts(_bits(score) >> HALF) for score in scores()])
    bucket = crossing(upper.sum(dim=0), count)
    below = upper[:, :bucket].sum(dim=1)
    lower = torch.stack([bucket_counts(_inside(_bits(score), bucket)) for score in scores()])
    value = crossing(lower.sum(dim=0), count - int(below.sum()))
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

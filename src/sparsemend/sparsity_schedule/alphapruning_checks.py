"""The options of AlphaPruning (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.asked import Asked, check_choices
from sparsemend.sparsity_schedule.rates.options import (
    KEY,
    check_granularity,
    check_limits,
    check_scored,
    is_number,
)

CHOICES = {
    "metric": ("alpha_peak", "alpha_mid"),
    "lower_bound": ("reference", "fixed"),
    "weight_dtype": ("float16", "stored"),
}

MOST_BINS = 10**6  # no linear has as many eigenvalues


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ValueError naming the first option that is not legal; 1 - spread is a factor."""
    check_scored(options, widest=1)
    check_choices(KEY, options, CHOICES)
    bins = options["bins"]
    if not is_number(bins) or not (0 < bins < 1 or (2 <= bins <= MOST_BINS and bins % 1 == 0)):
        raise ValueError(
            f"{KEY}.bins={bins} is neither a whole number of bins in [2, {MOST_BINS}] nor, below "
            "1, a share of a linear's eigenvalues; the authors' code has 100"
        )


def check(asked: Asked) -> None:
    """Raise ValueError where options, pattern and sparsity do not go together."""
    check_options(asked.section)
    check_granularity(asked)
    check_limits(asked)

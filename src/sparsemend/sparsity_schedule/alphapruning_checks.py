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
)

CHOICES = {
    "metric": ("alpha_peak", "alpha_mid"),
    "lower_bound": ("reference", "fixed"),
    "weight_dtype": ("float16", "stored"),
}


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ValueError naming the first option that is not legal; 1 - spread is a factor."""
    check_scored(options, widest=1)
    check_choices(KEY, options, CHOICES)


def check(asked: Asked) -> None:
    """Raise ValueError where options, pattern and sparsity do not go together."""
    check_options(asked.section)
    check_granularity(asked)
    check_limits(asked)

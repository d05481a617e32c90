"""The values that the schedules' options may have, free of torch; they are checked before a run
starts and again where a schedule is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHOICES = {
    "granularity": ("block", "linear"),
    "budget": ("exact", "reference"),
    "reduction": ("median", "mean"),
    "metric": ("alpha_peak", "alpha_mid"),
    "lower_bound": ("reference", "fixed"),
    "weight_dtype": ("float16", "stored"),
    "score": ("magnitude", "wanda"),
    "dense": ("last_linear", "last_block"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first option that is not one of its choices or out of range."""
    for key, choices in CHOICES.items():
        if key in options and options[key] not in choices:
            raise ValueError(
                f"sparsity_schedule.{key}={options[key]} is not one of {', '.join(choices)}"
            )
    _check_range(options, "min_sparsity", 0, 1)
    _check_range(options, "max_sparsity", 0, 1)
    # AlphaPruning scales by 1 - spread .. 1 + spread; OWL and DLP span twice the spread
    _check_range(options, "spread", 0, 1 if "metric" in options else 0.5)
    _check_range(options, "tolerance", 0, 1)
    multiple = options.get("outlier_multiple", 1)
    if not _is_number(multiple) or not multiple > 0:
        raise ValueError(f"sparsity_schedule.outlier_multiple={multiple} is not above 0")


def _check_range(options: Mapping[str, Any], key: str, low: float, high: float) -> None:
    if key not in options:
        return
    value = options[key]
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"sparsity_schedule.{key}={value} is not in [{low:g}, {high:g}]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""The options of OWL (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.asked import Asked
from sparsemend.sparsity_schedule.rates.options import (
    KEY,
    check_granularity,
    check_limits,
    check_scored,
    is_number,
)


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ValueError naming the first option that is not legal; rates span twice the spread."""
    check_scored(options, widest=0.5)
    multiple = options["outlier_multiple"]
    if not is_number(multiple) or not multiple > 0:
        raise ValueError(f"{KEY}.outlier_multiple={multiple} is not above 0")


def check(asked: Asked) -> None:
    """Raise ValueError where options, pattern and sparsity do not go together."""
    check_options(asked.section)
    check_granularity(asked)
    check_limits(asked)

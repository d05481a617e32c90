"""The options of LAMP (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.asked import Asked, check_choices
from sparsemend.sparsity_schedule.rates.options import GRANULARITY, KEY, check_granularity


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ValueError naming the first option that is not one of its choices."""
    check_choices(KEY, options, GRANULARITY)


def check(asked: Asked) -> None:
    """Raise ValueError on an option that is not legal, or not with this pattern."""
    check_options(asked.section)
    check_granularity(asked)

"""The options that several schedules have, free of torch.

They are checked before a run starts and again where a schedule is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.asked import Asked, check_choices

KEY = "sparsity_schedule"
GRANULARITY = {"granularity": ("block", "linear")}
SCORED = {**GRANULARITY, "budget": ("exact", "reference")}


def check_scored(options: Mapping[Any, Any], *, widest: float) -> None:
    """Raise ValueError on an option of a schedule by scores; its spread is in [0, widest]."""
    check_choices(KEY, options, SCORED)
    check_range(options, "min_sparsity", 0, 1)
    check_range(options, "max_sparsity", 0, 1)
    check_range(options, "spread", 0, widest)


def check_range(options: Mapping[Any, Any], key: str, low: float, high: float) -> None:
    """Raise ValueError unless a value is a number in [low, high]."""
    value = options[key]
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{KEY}.{key}={value} is not in [{low:g}, {high:g}]")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_limits(asked: Asked) -> None:
    """Raise ValueError where the target cannot be kept: by limits, or by whole N as references do.

    With a mixed pattern a reference moves each block by whole N from the target, which so has one.
    """
    schedule, sparsity = asked.section, asked.cfg.sparsity
    low, high = schedule.min_sparsity, schedule.max_sparsity
    size = asked.pattern.group_size
    if schedule.budget != "reference" and not low <= sparsity <= high:
        raise ValueError(
            f"sparsity {sparsity} is not in [{low:g}, {high:g}], the range of every rate; change "
            "sparsity_schedule.min_sparsity or max_sparsity"
        )
    if schedule.budget == "reference" and asked.pattern.mixed:
        whole = round(sparsity * size)
        if abs(sparsity * size - whole) > 1e-6:
            raise ValueError(
                f"sparsity_schedule.budget=reference with pattern {asked.pattern} needs a whole "
                f"sparsity * {size}, not {sparsity} * {size} = {sparsity * size:g}; set "
                f"sparsity={whole / size:g}, or sparsity_schedule.budget=exact"
            )


def check_granularity(asked: Asked) -> None:
    """Raise ValueError where rates by linear contradict a pattern, which has one N per block."""
    if asked.section.granularity == "linear" and not asked.pattern.unstructured:
        raise ValueError(
            f"sparsity_schedule={asked.name} with granularity=linear gives each linear a rate of "
            f"its own, which cannot be whole N of pattern {asked.pattern}; use "
            "sparsity_schedule.granularity=block or pattern=unstructured"
        )


def check_unstructured(asked: Asked) -> None:
    """Raise ValueError where a schedule that knows rates by linear alone meets a pattern."""
    if not asked.pattern.unstructured:
        raise ValueError(
            f"sparsity_schedule={asked.name} gives each linear a rate of its own, which cannot be "
            f"whole N of pattern {asked.pattern}; use pattern=unstructured or another schedule"
        )

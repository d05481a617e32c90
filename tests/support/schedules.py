"""Any schedule as its yaml configures it."""

from __future__ import annotations

import importlib
from typing import Any

from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from support.configs import compose

from sparsemend.sparsity_schedule.base import SparsitySchedule


def schedule_of(name: str, **options: Any) -> SparsitySchedule:
    """The member `name` with some of its keys changed."""
    settings = compose("run", [f"sparsity_schedule={name}"]).sparsity_schedule
    for key, value in options.items():
        settings[key] = value
    schedule = instantiate(
        settings, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
    )
    assert isinstance(schedule, SparsitySchedule)
    return schedule


def module_of(name: str) -> Any:
    """The module of a member; `global` cannot be named in an import statement."""
    return importlib.import_module(f"sparsemend.sparsity_schedule.{name}")

"""File: rates that were decided elsewhere, by linear or by block, from yaml, json or csv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from sparsemend.blocks.names import saved_name
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, Granularity, SparsitySchedule
from sparsemend.sparsity_schedule.file_checks import check_options
from sparsemend.sparsity_schedule.rates.rates_file import (
    by_linear,
    by_module,
    check_rates,
    read_rates,
)
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class File(SparsitySchedule):
    """The rates in `path`; their mean must be the target to within `tolerance`."""

    streams: ClassVar[bool] = True

    path: str
    tolerance: float

    def __post_init__(self) -> None:
        check_options(vars(self))

    @property
    def varies_by(self) -> Granularity:
        return "block"

    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """Raises ValueError naming a linear without a rate, a key without a linear, a wrong mean,
        and a rate that a mixed pattern cannot keep; FileNotFoundError without the file."""
        size = Units.of(model, "linear").size
        names = {name: saved_name(model, name) for name in size}
        rates = by_linear(by_module(read_rates(Path(self.path)), names), size, names)
        check_rates(rates, size, sparsity, pattern, self.tolerance, names)
        return Allocation(rates, size, sparsity, self.tolerance + 1e-12)

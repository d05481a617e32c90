"""The common base of schedules that measure the dense model and map what they measured to rates.

A measurement knows no rate: one serves every sparsity, pruner, pattern and spread, and a cache may
keep it (`run.keys.Keys.scoring`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import nn

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule, check_pattern


class MeasuringSchedule(SparsitySchedule):
    """Measures once, then gives rates for any target.

    shaping: the options that map a measurement to rates and that the measurement does not read.
    """

    shaping: ClassVar[frozenset[str]]

    @abstractmethod
    def measure(self, model: nn.Module, calibration: Calibration) -> list[Any]:
        """What the rates follow from, as JSON values; reads no option of `shaping`."""

    @abstractmethod
    def rates_of(
        self, measured: list[Any], model: nn.Module, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """The rates that follow from a measurement of `model`, whose weights are not read."""

    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        return self.rates_of(self.measure(model, calibration), model, sparsity, pattern)

    def allocate_measured(
        self,
        measuring: Callable[[Callable[[], list[Any]]], list[Any]],
        model: nn.Module,
        calibration: Calibration,
        sparsity: float,
        pattern: Pattern,
    ) -> Allocation:
        """`allocate` with the measurement that `measuring` gives, which is handed `measure`."""
        check_pattern(pattern, self.varies_by)
        measured = measuring(partial(self.measure, model, calibration))
        return self.rates_of(measured, model, sparsity, pattern)

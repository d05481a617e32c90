"""The contract of every schedule: how much each linear loses."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.rates.progression import ROUNDING

log = logging.getLogger(__name__)

Granularity = Literal["block", "linear"]


@dataclass(frozen=True)
class Allocation(Mapping[str, float]):
    """Linear name -> sparsity in [0, 1], with the parameter-weighted mean checked on construction.

    `tolerance` is the documented deviation of that schedule's formula from the target.  `scores`:
    the measurements that the rates follow from, by block or linear name; empty without any.
    """

    rates: Mapping[str, float]
    sizes: Mapping[str, int]
    target: float
    tolerance: float = 1e-9
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rate in self.rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}: sparsity {rate} is not in [0, 1]")
        if abs(self.mean - self.target) > self.tolerance:
            raise ValueError(
                f"mean sparsity {self.mean:.6f} misses the target {self.target} by more than "
                f"{self.tolerance:g}"
            )

    @property
    def mean(self) -> float:
        """Parameter-weighted mean rate."""
        return self.mean_of(list(self.rates)) if self.rates else self.target

    def mean_of(self, names: Sequence[str]) -> float:
        """Parameter-weighted mean rate of some of the linears."""
        weighted = math.fsum(self.rates[name] * self.sizes[name] for name in names)
        return weighted / sum(self.sizes[name] for name in names)

    def __getitem__(self, name: str) -> float:
        return self.rates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rates)

    def __len__(self) -> int:
        return len(self.rates)


def mixed_tolerance(pattern: Pattern, weights: Sequence[float]) -> float:
    """Largest deviation of the mean by rounding to whole N per block, of so many weights each.

    Half an N of the largest block: where blocks are equal, half of 1 / (blocks * M).
    """
    return 0.5 * max(weights) / (pattern.group_size * sum(weights)) + 1e-9


def report_rounding(pattern: Pattern, mean: float, target: float) -> None:
    """Log a mean that whole N per block keep off the target by more than a thousandth."""
    if abs(mean - target) > ROUNDING:
        log.warning(
            "pattern %s keeps a whole N of every block, so that the sparsity is %.4f, not %g",
            *(pattern, mean, target),
        )


class SparsitySchedule(ABC):
    """Gives every prunable linear its own sparsity.

    uniform: all of them get the target, whatever the options.  streams: it reads weights in
    `Calibration.walk` or by `blocks.residency.visit_linears`, so that blocks may lie in files.
    """

    uniform: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    @property
    def needs_calibration(self) -> bool:
        """Whether `allocate` reads the calibration."""
        return False

    @property
    def varies_by(self) -> Granularity:
        """What gets a rate of its own, unless the schedule is uniform."""
        return "linear"

    def allocate(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """Rates for every prunable linear of `model` with parameter-weighted mean `sparsity`.

        `model` is left as it was.  Raises ValueError with an N:M pattern that such rates
        contradict.
        """
        if not self.uniform:
            check_pattern(pattern, self.varies_by)
        return self.decide(model, calibration, sparsity, pattern)

    @abstractmethod
    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """The rates of `allocate`, for a pattern that they do not contradict."""


def check_pattern(pattern: Pattern, varies_by: Granularity) -> None:
    """Raise ValueError where rates that vary contradict an N:M pattern."""
    if pattern.unstructured:
        return
    if varies_by == "linear":
        raise ValueError(
            f"rates by linear with pattern {pattern} are undefined, a mixed pattern has one N per "
            "block; use pattern=unstructured or, where it is offered, granularity=block"
        )
    if not pattern.mixed:
        raise ValueError(
            f"rates by block with the fixed pattern {pattern} are undefined; use "
            f"pattern=mixed:{pattern.group_size}, which gives each block its own N"
        )

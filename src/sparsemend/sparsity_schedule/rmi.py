"""RMI: blocks whose inputs resemble those of the other blocks lose more.

The block rates of LoSA's rounds (Huang et al. 2025, arXiv 2502.14816) as a schedule of their own,
computed once on the dense model: similarity of the blocks' inputs over sequences (`similarity`),
importance and linear program (`block_rates`).  Every linear of a block gets its block's rate.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import (
    Allocation,
    Granularity,
    mixed_tolerance,
    report_rounding,
)
from sparsemend.sparsity_schedule.measured import MeasuringSchedule
from sparsemend.sparsity_schedule.rates.block_rates import (
    Band,
    check_rule,
    delta_of,
    importance,
    solve,
)
from sparsemend.sparsity_schedule.rates.by_block import block_allocation, block_weights
from sparsemend.sparsity_schedule.rates.progression import mixed_kept
from sparsemend.sparsity_schedule.rates.similarity import block_similarity

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Rmi(MeasuringSchedule):
    """Rates in a band of +-delta around the target, from the similarity of the blocks' inputs."""

    streams: ClassVar[bool] = True
    shaping: ClassVar[frozenset[str]] = frozenset({"beta", "delta", "solver"})

    similarity_samples: int
    beta: float
    delta: float | None
    solver: str

    def __post_init__(self) -> None:
        check_rule(
            "sparsity_schedule",
            samples=self.similarity_samples,
            beta=self.beta,
            delta=self.delta,
            solver=self.solver,
        )

    @property
    def needs_calibration(self) -> bool:
        return True

    @property
    def varies_by(self) -> Granularity:
        return "block"

    def measure(self, model: nn.Module, calibration: Calibration) -> list[list[float]]:
        """The similarity (L, L) of the blocks' inputs.

        Raises ValueError where there are too few sequences.
        """
        similarity = block_similarity(model, calibration, self.similarity_samples)
        rows: list[list[float]] = similarity.tolist()
        return rows

    def rates_of(
        self, measured: list[list[float]], model: nn.Module, sparsity: float, pattern: Pattern
    ) -> Allocation:
        delta = delta_of(sparsity) if self.delta is None else self.delta
        band = Band(sparsity, delta, block_weights(model), most=pattern.largest_rate)
        rates = solve(band, importance(measured, self.beta), self.solver)
        log.info("block rates  %s", "  ".join(f"{rate:.4f}" for rate in rates))
        if not pattern.mixed:
            return block_allocation(model, rates, sparsity)
        kept = mixed_kept(rates, pattern.group_size, sparsity, band.weights)
        rates = [1 - n / pattern.group_size for n in kept]
        report_rounding(pattern, band.mean(rates), sparsity)
        return block_allocation(model, rates, sparsity, mixed_tolerance(pattern, band.weights))

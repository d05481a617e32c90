"""The units that get one rate each from a schedule: whole blocks, or single linears."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sparsemend.blocks.find import find_blocks, linears_of
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import (
    Allocation,
    Granularity,
    mixed_tolerance,
    report_rounding,
)
from sparsemend.sparsity_schedule.rates.budget import to_budget, weighted_mean
from sparsemend.sparsity_schedule.rates.progression import mixed_kept

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Units:
    """unit name -> full names of its linears, in order; size: weights per linear."""

    members: Mapping[str, Sequence[str]]
    size: Mapping[str, int]
    granularity: Granularity

    @staticmethod
    def of(model: nn.Module, granularity: Granularity) -> Units:
        """The units of `model`; a block without linears is not a unit."""
        prefix, blocks = find_blocks(model)
        names = {f"{prefix}.{i}": [*linears_of(block)] for i, block in enumerate(blocks)}
        full = {block: [f"{block}.{name}" for name in inner] for block, inner in names.items()}
        linears = [name for inner in full.values() for name in inner]
        size = {name: _weights(model, name) for name in linears}
        if granularity == "linear":
            return Units({name: [name] for name in linears}, size, granularity)
        return Units({block: inner for block, inner in full.items() if inner}, size, granularity)

    @property
    def weights(self) -> list[int]:
        """Weights per unit."""
        return [sum(self.size[name] for name in inner) for inner in self.members.values()]

    def by_linear(self, values: Sequence[float]) -> dict[str, float]:
        """Map every linear's full name to the value of its unit; `values` are one per unit."""
        pairs = zip(self.members.values(), values, strict=True)
        return {name: value for inner, value in pairs for name in inner}

    def allocation(
        self,
        rates: Sequence[float],
        target: float,
        pattern: Pattern,
        *,
        tolerance: float = 1e-9,
        scores: Sequence[float] = (),
    ) -> Allocation:
        """The rates of the units as an Allocation; a mixed pattern rounds each to N of M.

        It keeps at least 1 of M: rates above 1 - 1/M are clipped and all shifted to keep the mean.
        """
        if pattern.mixed:
            size, most = pattern.group_size, pattern.largest_rate
            if (beyond := sum(rate > most + 1e-9 for rate in rates)) > 0:
                log.warning(
                    "pattern %s keeps 1 of every %d at least: %d of %d rates above %g were clipped "
                    "and all rates shifted to keep the mean %g",
                    *(pattern, size, beyond, len(rates), most, target),
                )
                rates = to_budget(rates, self.weights, target, 0.0, most)
            kept = mixed_kept(rates, size, target, self.weights)
            rates = [1 - n / size for n in kept]
            tolerance = mixed_tolerance(pattern, self.weights)
            report_rounding(pattern, weighted_mean(rates, self.weights), target)
        named = dict(zip(self.members, scores, strict=True)) if scores else {}
        return Allocation(self.by_linear(rates), self.size, target, tolerance, named)

    def from_counts(self, counts: Mapping[str, int], target: float, pattern: Pattern) -> Allocation:
        """The allocation that removes `counts` weights of the linears, pooled over each unit.

        Counts are whole, so the mean misses the target by at most half a weight of the model.
        """
        removed = [sum(counts[name] for name in inner) for inner in self.members.values()]
        rates = [count / size for count, size in zip(removed, self.weights, strict=True)]
        tolerance = 0.5 / sum(self.size.values()) + 1e-9
        return self.allocation(rates, target, pattern, tolerance=tolerance)


def _weights(model: nn.Module, name: str) -> int:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight.numel()

"""The number of sparse deltas of a model, and of each of its linears (no torch).

    K = deltas | floor(density * all parameters) | r * sum (inputs + outputs) as LoRA of rank r has
    k = floor(K n / sum n) for a linear of n weights

(SpIEL, Ansell et al. 2024, arXiv 2401.16405.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

MATCHES = ("density", "deltas", "lora_rank")


@dataclass(frozen=True, kw_only=True)
class DeltaBudget:
    """The number of deltas by one of MATCHES; the values of the others are not read."""

    match: str
    density: float | None
    deltas: int | None
    lora_rank: int | None

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"method.budget.match={self.match!r} is not one of: {MATCHES}")
        if self.match == "density" and (self.density is None or not 0 < self.density <= 1):
            raise ValueError(
                f"method.budget.density={self.density} is not in (0, 1]; it is the number of "
                "deltas over that of all parameters, for example 0.01"
            )
        if self.match == "deltas" and (self.deltas is None or self.deltas < 1):
            raise ValueError(f"method.budget.deltas={self.deltas} is not an integer of at least 1")
        if self.match == "lora_rank" and (self.lora_rank is None or self.lora_rank < 1):
            raise ValueError(
                f"method.budget.lora_rank={self.lora_rank} is not an integer of at least 1"
            )

    def total(self, shapes: Mapping[str, tuple[int, ...]], parameters: int) -> int:
        """K for linears of these shapes (O, I) in a model with that number of parameters."""
        if self.match == "lora_rank":
            assert self.lora_rank is not None
            return self.lora_rank * sum(sum(shape) for shape in shapes.values())
        if self.match == "deltas":
            assert self.deltas is not None
            return self.deltas
        assert self.density is not None
        return int(self.density * parameters)

    def per_linear(self, shapes: Mapping[str, tuple[int, ...]], parameters: int) -> dict[str, int]:
        """Linear name -> k, in proportion to the linear's number of weights."""
        total, weights = self.total(shapes, parameters), sum(map(prod, shapes.values()))
        return {name: total * prod(shape) // weights for name, shape in shapes.items()}

    def check(self, name: str, count: int, kept: int) -> None:
        """Raise ValueError where `name` would hold more deltas than weights that stay."""
        if count > kept:
            raise ValueError(
                f"{name} would get {count} deltas but keeps {kept} weights (method.budget.match="
                f"{self.match}); lower method.budget.{self.match} to {kept / count:.3g} of its "
                "value or less"
            )

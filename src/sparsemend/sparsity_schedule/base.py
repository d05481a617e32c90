"""The contract of every schedule: how much each linear loses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsemend.sparse.pattern import Pattern


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


def mixed_tolerance(pattern: Pattern, blocks: int) -> float:
    """Largest deviation of the mean by rounding to whole N per block: half of 1 / (blocks * M)."""
    return 0.5 / (pattern.group_size * blocks) + 1e-9


class SparsitySchedule(ABC):
    """Gives every prunable linear its own sparsity.

    uniform: all of them get the target, whatever the options.
    """

    uniform: ClassVar[bool] = False

    @property
    def needs_calibration(self) -> bool:
        """Whether `allocate` reads the batches."""
        return False

    @abstractmethod
    def allocate(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        sparsity: float,
        pattern: Pattern,
        *,
        device: torch.device | None = None,
        offload: bool = False,
    ) -> Allocation:
        """Rates for every prunable linear of `model` with parameter-weighted mean `sparsity`.

        batches, device and offload are those of `walk`; `model` is left as it was.
        """

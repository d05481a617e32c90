"""Counts of DSnoT's swaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from sparsemend.method.dsnot.swaps import Refined


@dataclass(frozen=True)
class Tally:
    """Counts of the swaps in some linears; errors are sums of |E| over `rows` refined rows."""

    revived: int = 0
    moved: int = 0
    weights: int = 0
    rows: int = 0
    before: float = 0.0
    after: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.revived + other.revived,
            self.moved + other.moved,
            self.weights + other.weights,
            self.rows + other.rows,
            self.before + other.before,
            self.after + other.after,
        )

    @staticmethod
    def of(start: Tensor, refined: Refined) -> Tally:
        """The tally of one linear that started with support `start`."""
        return Tally(
            revived=int((refined.keep & ~start).count_nonzero()),
            moved=int((refined.keep != start).count_nonzero()),
            weights=start.numel(),
            rows=len(start),
            before=float(refined.before.abs().sum()),
            after=float(refined.after.abs().sum()),
        )

    @property
    def fraction_moved(self) -> float:
        """Share of all mask entries that differ from the start's."""
        return self.moved / max(self.weights, 1)

    @property
    def mean_before(self) -> float:
        return self.before / max(self.rows, 1)

    @property
    def mean_after(self) -> float:
        return self.after / max(self.rows, 1)


@dataclass
class Tallies:
    """The tallies of a model's blocks in order, kept beside each block that is finished."""

    blocks: list[Tally] = field(default_factory=list)

    @property
    def total(self) -> Tally:
        """That of the whole model."""
        return sum(self.blocks, Tally())

    def to_carry(self) -> dict[str, Any]:
        return {"blocks": [asdict(tally) for tally in self.blocks]}

    def carry_on_(self, values: Mapping[str, Any]) -> None:
        self.blocks = [Tally(**tally) for tally in values["blocks"]]

"""ER-plus: Erdos-Renyi densities with the last layer dense and the others solved again.

Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning", arXiv 2202.02643, where the
last layer is the classifier.  A decoder's head is not pruned at all, so "last layer" is a choice:
the last prunable linear, or all linears of the last block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsemend.blocks.find import block_index, find_blocks, prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule
from sparsemend.sparsity_schedule.er_plus_checks import check_options
from sparsemend.sparsity_schedule.rates import erdos_renyi
from sparsemend.sparsity_schedule.rates.units import Units


@dataclass(kw_only=True)
class ErPlus(SparsitySchedule):
    """ER with `dense` (last_linear | last_block) kept whole."""

    streams: ClassVar[bool] = True

    dense: str

    def __post_init__(self) -> None:
        check_options(vars(self))

    def decide(
        self, model: nn.Module, calibration: Calibration, sparsity: float, pattern: Pattern
    ) -> Allocation:
        """Raises ValueError where the dense layer leaves too little."""
        prefix, _ = find_blocks(model)
        shapes = {n: (m.out_features, m.in_features) for n, m in prunable_linears(model).items()}
        block_of = {name: block_index(name, prefix) for name in shapes}
        dense = erdos_renyi.last_layer(list(shapes), block_of, self.dense)
        rates = erdos_renyi.rates(shapes, sparsity, dense)
        units = Units.of(model, "linear")
        return units.allocation([rates[name] for name in units.members], sparsity, pattern)

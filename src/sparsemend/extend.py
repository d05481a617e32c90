"""The stable names that a pruner, schedule or method of your own imports.

The package may move its modules; these names stay.
"""

from sparsemend.blocks.statistics import InputNorm, Statistic
from sparsemend.blocks.walk import Calibration
from sparsemend.method.adapter.fold import adapters
from sparsemend.method.adapter.low_rank import attach_adapters
from sparsemend.method.base import RepairMethod, Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.selection import lowest_of_all, lowest_per_group
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule

__all__ = [
    "Allocation",
    "Calibration",
    "InputNorm",
    "Pruned",
    "Pruner",
    "RepairMethod",
    "SparseLinear",
    "SparsitySchedule",
    "Statistic",
    "TrainedRepair",
    "Workbench",
    "adapters",
    "attach_adapters",
    "lowest_of_all",
    "lowest_per_group",
]

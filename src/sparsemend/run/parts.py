"""The configured objects of one run, and what they demand of each other."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemend.data.base import DataSource
from sparsemend.evaluation.base import Evaluation
from sparsemend.hardware import Hardware
from sparsemend.logger.base import Trackers
from sparsemend.method.base import RepairMethod
from sparsemend.model import ModelSource
from sparsemend.pruner.base import Pruner
from sparsemend.sparsity_schedule.base import SparsitySchedule


@dataclass(frozen=True)
class Parts:
    """One object per config group, made by `run`."""

    model: ModelSource
    data: DataSource
    pruner: Pruner
    sparsity_schedule: SparsitySchedule
    method: RepairMethod
    hardware: Hardware
    evaluation: dict[str, Evaluation]
    logger: Trackers

    def check(self) -> None:
        """Raise ValueError where they cannot work together."""
        if self.method.needs_dense and self.pruner.reads_support:
            raise ValueError(
                f"{type(self.method).__name__} reads the dense weights, which an already pruned "
                "checkpoint (pruner=existing) does not have; give the dense model and a pruner"
            )

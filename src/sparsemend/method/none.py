"""No repair: the pruned model as it is, so that sweeps have their baseline row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from sparsemend.method.base import RepairMethod, Workbench


@dataclass(kw_only=True)
class NoRepair(RepairMethod):
    """Leaves the model untouched."""

    repairs: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        return {}

"""The pruning of one run: from the cache, from given supports, or by schedule and pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.config.locations import resolve_path
from sparsemend.prune import dense_statistics, observe_first, prune, prune_observed
from sparsemend.pruner.base import Pruner
from sparsemend.rounding import apply_rounding
from sparsemend.run.adopt import adopt
from sparsemend.run.digests import section, tokens_digest
from sparsemend.run.shared import SharedWork
from sparsemend.run.user_code import code_digest
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation, SparsitySchedule


@dataclass(frozen=True, kw_only=True)
class PruneStage:
    """The pruning of one run, with all that it reads besides model and calibration windows."""

    cfg: DictConfig
    pruner: Pruner
    schedule: SparsitySchedule
    pattern: Pattern
    shared: SharedWork
    device: torch.device
    offload: bool

    def __call__(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> Mapping[str, float]:
        """Prune `model` in place; return the sparsity asked of every linear.

        batches: (B, T) tokens.
        """
        if self.pruner.reads_support:
            return adopt(model, self.given_supports())
        if not self.pruner.prunes:
            return self._prune(model, batches)
        return self.shared.prune(
            model, self._decides(batches), partial(self._prune, model, batches)
        )

    def given_supports(self) -> Mapping[str, Tensor] | None:
        """Supports, bool (O, I) by linear, in the masks file of a pruned checkpoint, or None."""
        if not self.pruner.reads_support:
            return None
        return self.pruner.supports(resolve_path(self.cfg.model.path))

    def _prune(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> Allocation:
        place: dict[str, Any] = {"device": self.device, "offload": self.offload}
        allocation = self.schedule.allocate(
            model, batches, self.cfg.sparsity, self.pattern, **place
        )
        pruner, allocation = apply_rounding(self.cfg.rounding, self.pruner, allocation)
        if self.cfg.statistics == "dense" and self.pruner.needs_calibration:
            statistics = self._remember("statistics", dense_statistics, model, batches)
            prune_observed(model, statistics, pruner, allocation, self.pattern, **place)
            return allocation
        first = None
        if self.shared.memory:
            first = self._remember("first block", observe_first, model, batches)
        prune(model, batches, pruner, allocation, self.pattern, **place, first=first)
        return allocation

    def _remember(
        self, kind: str, observe: Any, model: PreTrainedModel, batches: Sequence[Tensor]
    ) -> Any:
        """Observe once for all jobs of this process what does not depend on the allocation."""
        parts = {
            **self.shared.environment,
            "model": self.shared.model_key,
            "pruner": section(self.cfg, "pruner"),
            **self._decides(batches),
        }
        place: dict[str, Any] = {"device": self.device, "offload": self.offload}
        return self.shared.remember(
            kind, parts, lambda: observe(model, batches, self.pruner, **place)
        )

    def _decides(self, batches: Sequence[Tensor]) -> dict[str, Any]:
        """The inputs that decide the pruned bits, besides model, configuration and machine."""
        return {
            "statistics": self.cfg.statistics,
            "calibration": [tokens_digest(batch) for batch in batches],
            "code": [code_digest(self.pruner), code_digest(self.schedule)],
        }

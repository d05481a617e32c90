"""Everything that decides the bits of a stage, as the parts that a cache key is a hash of.

The weights as loaded, the token windows, the configuration of pruner and schedule with the files
they name, the code of a user's own classes, seed, device, threads, and this package's source: so a
reused result has the very bits that computing it here would give.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

from sparsemend.blocks.walk import Calibration
from sparsemend.config.keys import keys_that, scalars
from sparsemend.config.values import digest
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.pruner.base import Pruner
from sparsemend.run.digests import (
    environment,
    examples_digest,
    model_digest,
    section,
    tokens_digest,
    with_files,
)
from sparsemend.run.user_code import code_digest
from sparsemend.run.windows import Wanted
from sparsemend.sparsity_schedule.base import SparsitySchedule
from sparsemend.sparsity_schedule.measured import MeasuringSchedule

DECISIVE = keys_that("decides_pruned_bits")


@dataclass
class Keys:
    """The parts of one job's keys.

    dense and pruned: the models they are about, as hashes; empty until they are there, and where
    nothing reads them.
    """

    cfg: DictConfig
    device: torch.device
    dense: str = ""
    pruned: str = ""

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Everything besides models, windows and configuration that decides bits."""
        return environment(self.cfg, self.device)

    def windows(self, wanted: Wanted) -> dict[str, Any]:
        """Parts of the token windows."""
        return {**self._source(), "data": with_files(section(self.cfg, "data")), **asdict(wanted)}

    def model(self) -> dict[str, Any]:
        """Parts of the dense model, whose linears are marked where they stay dense."""
        return {**self._source(), "prunable": section(self.cfg, "prunable")}

    def _source(self) -> dict[str, Any]:
        """Parts of what is loaded, of which a debug run keeps the first blocks."""
        cut = {"blocks": self.cfg.debug.blocks} if self.cfg.get("debug") is not None else {}
        return {"model": section(self.cfg, "model"), "seed": self.cfg.seed, **cut}

    def pruning(
        self, calibration: Calibration, pruner: Pruner, schedule: SparsitySchedule
    ) -> dict[str, Any]:
        """Parts of the pruned model."""
        return {
            **self.observing(calibration, pruner, schedule),
            "sparsity_schedule": with_files(section(self.cfg, "sparsity_schedule")),
            **scalars(self.cfg, DECISIVE),
        }

    def observing(
        self, calibration: Calibration, pruner: Pruner, schedule: SparsitySchedule
    ) -> dict[str, Any]:
        """Parts of what a pruning observes of the dense model, whatever the rates."""
        return {
            **self.environment,
            "model": self.dense,
            "pruner": with_files(section(self.cfg, "pruner")),
            "prunable": section(self.cfg, "prunable"),
            "statistics": self.cfg.statistics,
            "calibration": [tokens_digest(batch) for batch in calibration.batches],
            "code": [code_digest(pruner), code_digest(schedule)],
        }

    def scoring(self, calibration: Calibration, schedule: MeasuringSchedule) -> dict[str, Any]:
        """Parts of what a schedule measures: neither pruner nor rates, no windows without need."""
        options = section(self.cfg, "sparsity_schedule").items()
        windows = calibration.batches if schedule.needs_calibration else ()
        return {
            **self.environment,
            "model": self.dense,
            "prunable": section(self.cfg, "prunable"),
            "schedule": with_files({k: v for k, v in options if k not in schedule.shaping}),
            "calibration": [tokens_digest(batch) for batch in windows],
            "code": code_digest(schedule),
        }

    def measuring(
        self, model: str, name: str, evaluation: Evaluation, inputs: EvaluationInput
    ) -> dict[str, Any]:
        """Parts of one evaluation of a model.  model: its hash, name: the evaluation's."""
        validation = inputs.validation if evaluation.needs_validation else None
        return {
            **self.environment,
            "of": model,
            "evaluation": with_files(section(self.cfg, "evaluation")[name]),
            "code": code_digest(evaluation),
            "batch": inputs.batch_size,
            "test": tokens_digest(inputs.test),
            "task": examples_digest(inputs.task),
            "validation": examples_digest(validation),
        }


def model_key(model: PreTrainedModel) -> str:
    """A model's weights and configuration, and the code of a class that came with a checkpoint."""
    return digest([model_digest(model), code_digest(model)])

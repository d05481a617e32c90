"""Experiment trackers: metrics go to the Trainer's logger, the result's summary beside them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger

log = logging.getLogger(__name__)


def log_mask_update(trainer: Trainer, moved: Mapping[str, float]) -> None:
    """Record one mask update, `masks/<name>` for every entry, beside that step's training loss.

    moved: what it did, for example {"dropped": 512, "grown": 512, "rate": 0.1}.  To be called
    from a callback after the optimizer step that the update follows (UpdateMasks.update).  Unlike
    `LightningModule.log` it repeats nothing at the steps in between.
    """
    step = trainer.global_step - 1  # Lightning counts the loss of the first step as step 0
    for logger in trainer.loggers:  # none on ranks above 0
        logger.log_metrics({f"masks/{name}": float(n) for name, n in moved.items()}, step=step)
    shown = "  ".join(f"{name} {value:g}" for name, value in moved.items())
    log.info("mask update after step %d  %s", trainer.global_step, shown)


class Tracker(ABC):
    """Opens one Lightning logger per run."""

    @abstractmethod
    def open(self, out: Path, config: Mapping[str, Any]) -> Logger:
        """A logger for the run in `out`, told the resolved config."""

    @abstractmethod
    def finish(self, logger: Logger, summary: Mapping[str, Any]) -> None:
        """Record final numbers and close; `result.json` stays the truth."""

    @abstractmethod
    def abandon(self, logger: Logger) -> None:
        """Close after a failure, so that the next job of a sweep opens a run of its own."""


@dataclass(kw_only=True)
class CsvTracker(Tracker):
    """training/metrics.csv in the run folder, nothing else."""

    def open(self, out: Path, config: Mapping[str, Any]) -> Logger:
        # CSVLogger empties a folder it finds, and a resumed run keeps the earlier part's curve
        parts = len(list(out.glob("training*")))
        return CSVLogger(out, name="", version=f"training-{parts + 1}" if parts else "training")

    def finish(self, logger: Logger, summary: Mapping[str, Any]) -> None:
        logger.finalize("success")

    def abandon(self, logger: Logger) -> None:
        logger.finalize("failed")


@dataclass(kw_only=True)
class WandbTracker(Tracker):
    """A Weights & Biases run mirroring config, training curves and final numbers."""

    project: str
    entity: str | None
    group: str | None
    mode: str
    tags: list[str]

    def open(self, out: Path, config: Mapping[str, Any]) -> Logger:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=self.mode,  # type: ignore[arg-type]
            tags=list(self.tags),
            dir=out,
            config=dict(config),
        )
        return WandbLogger(experiment=run)

    def finish(self, logger: Logger, summary: Mapping[str, Any]) -> None:
        run = self._run(logger)
        run.summary.update(dict(summary))
        run.finish()

    def abandon(self, logger: Logger) -> None:
        self._run(logger).finish(exit_code=1)

    def _run(self, logger: Logger) -> Any:
        from lightning.pytorch.loggers import WandbLogger

        if not isinstance(logger, WandbLogger):
            raise TypeError(f"expected the WandbLogger of open(), got {type(logger).__name__}")
        return logger.experiment

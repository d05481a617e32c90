"""Experiment trackers: metrics go to the Trainer's logger, the result's summary beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger


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

"""The curves and the summary of a run as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from sparsemend.logger.base import Tracker, csv_logger
from sparsemend.names import TENSORBOARD
from sparsemend.result.summary import summary_of


@dataclass(kw_only=True)
class TensorBoardTracker(Tracker):
    """Event files in the run folder's tensorboard/, and the CSV."""

    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        logger = TensorBoardLogger(out, name="", version=TENSORBOARD)
        logger.log_hyperparams(dict(config))
        return [csv_logger(out), logger]

    def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        self._summarise(loggers, result)
        super().finish(loggers, result)

    def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        self._summarise(loggers, result)
        super().abandon(loggers, result)

    def _summarise(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in summary_of(result).items() if isinstance(v, int | float)}
        loggers[-1].log_metrics({f"summary/{key}": float(v) for key, v in numbers.items()}, step=0)

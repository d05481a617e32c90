"""The curves and the summary of a run as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from sparsemend.config.values import leaves
from sparsemend.logger.base import Tracker, origin
from sparsemend.names import TENSORBOARD
from sparsemend.result.summary import summary_of


@dataclass(kw_only=True)
class TensorBoardTracker(Tracker):
    """Event files in the run folder's tensorboard/.

    Numbers of the summary are scalars at step 0; its words and the run's origin are texts.
    """

    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        logger = TensorBoardLogger(out, name="", version=TENSORBOARD)
        logger.log_hyperparams(dict(config))
        return [logger]

    def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        self._summarise(loggers, result)
        super().finish(loggers, result)

    def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        self._summarise(loggers, result)
        super().abandon(loggers, result)

    def _summarise(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        summary = summary_of(result)
        numbers = {key: float(v) for key, v in summary.items() if isinstance(v, int | float)}
        words = {key: v for key, v in summary.items() if isinstance(v, str)}
        for logger in loggers:
            logger.log_metrics(numbers, step=0)
            if isinstance(logger, TensorBoardLogger):
                for key, value in (*words.items(), *leaves(origin(result))):
                    logger.experiment.add_text(key.replace(".", "/"), str(value), 0)

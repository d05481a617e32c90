"""Experiment trackers: curves through Lightning's loggers, the result's summary at the end.

Every tracker writes training/metrics.csv, so that the curves are on disk whatever mirrors them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from sparsemend.names import CURVES


class Tracker(ABC):
    """Opens the Lightning loggers of a run and tells each of them what the run measured.

    A tracker that mirrors the result extends `finish` and `abandon`, which close the loggers.
    """

    @abstractmethod
    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        """Open the loggers of the run in `out`, which record the resolved config."""

    def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        """Record what `result.json` holds, which stays the truth, and close."""
        for logger in loggers:
            logger.finalize("success")

    def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        """Record whatever was reached and close, after a failure or an interrupt."""
        for logger in loggers:
            logger.finalize("failed")


def csv_logger(out: Path) -> CSVLogger:
    """training/metrics.csv in the run folder, which every tracker writes."""
    # CSVLogger empties a folder it finds, and a resumed run keeps the earlier part's curve
    parts = len(list(out.glob(f"{CURVES}*")))
    return CSVLogger(out, name="", version=f"{CURVES}-{parts + 1}" if parts else CURVES)

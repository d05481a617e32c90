"""Experiment trackers: curves through Lightning's loggers, the result's summary at the end.

Every run writes training/metrics.csv, so that the curves are on disk whatever mirrors them.  All
trackers get the same curves, and the summary under the same names.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from sparsemend.errors import blame
from sparsemend.names import CURVES

log = logging.getLogger(__name__)

REMEDY = "mend what it says, or leave this logger out of logger=[...]"


class Tracker(ABC):
    """Opens the Lightning loggers of one tracker and tells them what the run measured.

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


class Trackers(Tracker):
    """All trackers of one run, and training/metrics.csv; one that fails does not keep the others.

    members: the trackers by name, such as {"wandb": ..., "tensorboard": ...}.
    """

    def __init__(self, members: Mapping[str, Tracker]) -> None:
        self.members = members
        self._opened: list[tuple[str, list[Logger]]] = []

    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        """Open all; where one raises, `abandon` closes those that are open by then."""
        csv = csv_logger(out)
        self._opened = []
        for name, tracker in self.members.items():
            with blame(f"logger={name}", REMEDY):
                self._opened.append((name, tracker.open(out, config)))
        return [csv, *(logger for _, loggers in self._opened for logger in loggers)]

    def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        for logger in loggers[:1]:  # the CSV
            logger.finalize("success")
        self._close(lambda tracker, opened: tracker.finish(opened, result))

    def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        for logger in loggers[:1]:
            logger.finalize("failed")
        self._close(lambda tracker, opened: tracker.abandon(opened, result))

    def _close(self, close: Callable[[Tracker, list[Logger]], None]) -> None:
        """Close every tracker with the loggers that it opened."""
        for name, opened in self._opened:
            try:
                close(self.members[name], opened)
            except Exception:  # result.json is the truth, and it is written
                log.exception("logger.%s could not be brought to its end", name)


def csv_logger(out: Path) -> CSVLogger:
    """training/metrics.csv in the run folder, which every run writes."""
    # CSVLogger empties a folder it finds, and a resumed run keeps the earlier part's curve
    parts = len(list(out.glob(f"{CURVES}*")))
    return CSVLogger(out, name="", version=f"{CURVES}-{parts + 1}" if parts else CURVES)


def origin(result: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that tell two runs apart beside their config: its hash, the commit, the protocol.

    The protocol names the text by `data_hash`; it is missing where a run failed before it read.
    """
    return {
        "config_hash": result["config_hash"],
        "commit": result["provenance"]["commit"],
        "protocol": dict(result["protocol"]),
    }

"""The curves of a run as training/metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from sparsemend.logger.base import Tracker, csv_logger


@dataclass(kw_only=True)
class CsvTracker(Tracker):
    """training/metrics.csv in the run folder, nothing else."""

    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        return [csv_logger(out)]

"""No tracker: the curves of a run lie in training/metrics.csv, which every run writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from sparsemend.logger.base import Tracker


@dataclass(kw_only=True)
class CsvTracker(Tracker):
    """Nothing besides the training/metrics.csv of every run."""

    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        return []

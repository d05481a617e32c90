"""The training curves of a run folder, over all fits and attempts (training*/metrics.csv)."""

from __future__ import annotations

import csv
from pathlib import Path

from sparsemend.names import CURVES

STEP = "step"
NO_CURVES = (STEP, "epoch")


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Column -> (step, value) by step; of a step that two files have, the later file's counts."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(run.glob(f"{CURVES}*/metrics.csv"), key=_number):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and row.get(STEP) and name not in NO_CURVES:
                        curves.setdefault(name, {})[int(row[STEP])] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def _number(path: Path) -> int:
    """The number that the folder ends in, 0 of the first."""
    number = path.parent.name.partition("-")[2]
    return int(number) if number.isdigit() else 0

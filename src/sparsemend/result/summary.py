"""The part of a result that trackers record: the one place that names its keys.

status
{dense,pruned,repaired}/<metric>          repaired/perplexity/test is what searches minimise
sparsity/{target,achieved,effective,achieved_of_all_parameters}
sparsity/block/<index>                    achieved
cost/<stage>/{seconds,peak_bytes,trained_parameters}
repair/<diagnostic>                       numbers only, such as repair/steps
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPARSITY = ("target", "achieved", "effective", "achieved_of_all_parameters")
BLOCK_COLUMNS = ("block", "asked", "achieved", "score")
STEPWISE = "train/"  # curves with a value per step stay in the CSV

Value = float | int | str | None


def summary_of(result: Mapping[str, Any]) -> dict[str, Value]:
    """The keys above that a result has so far; numbers that are not finite become None."""
    sparsity = result["sparsity"]
    flat: dict[str, Any] = {"status": result["status"]}
    for state, metrics in result["metrics"].items():
        flat |= {f"{state}/{metric}": value for metric, value in metrics.items()}
    flat |= {f"sparsity/{key}": sparsity[key] for key in SPARSITY if key in sparsity}
    for block, achieved in sparsity.get("per_block", {}).items():
        flat[f"sparsity/block/{_index(block)}"] = achieved
    for stage, cost in result["cost"].items():
        flat |= {f"cost/{stage}/{key}": value for key, value in cost.items()}
    for key, value in result["repair"].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"repair/{key}"] = value
    return {key: _finite(value) for key, value in flat.items()}


def block_rows(result: Mapping[str, Any]) -> list[list[Value]]:
    """A row of BLOCK_COLUMNS per block; empty before the sparsity is counted."""
    sparsity = result["sparsity"]
    asked, scores = sparsity.get("asked_per_block", {}), sparsity.get("scores", {})
    return [
        [_index(block), asked.get(block), achieved, _finite(scores.get(block))]
        for block, achieved in sparsity.get("per_block", {}).items()
    ]


def metric_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[Value]]]:
    """(columns, rows): a row per state of the model, a column per metric."""
    states = result["metrics"]
    metrics = list(dict.fromkeys(name for values in states.values() for name in values))
    rows = [[state, *(_finite(v.get(name)) for name in metrics)] for state, v in states.items()]
    return ["model", *metrics], rows


def curves_of(out: Path) -> dict[str, list[list[float]]]:
    """{name: [[step, value], ...]} of training*/metrics.csv, without the curves of every step.

    Of a step that two attempts recorded, the later attempt's value counts.
    """
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(out.glob("training*/metrics.csv"), key=_part):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch") and not name.startswith(STEPWISE):
                        curves.setdefault(name, {})[int(row["step"])] = float(value)
    return {
        name: [[step, value] for step, value in sorted(c.items())] for name, c in curves.items()
    }


def _part(path: Path) -> int:
    number = path.parent.name.partition("-")[2]
    return int(number) if number.isdigit() else 0


def _index(block: str) -> int:
    return int(block.rpartition(".")[2])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

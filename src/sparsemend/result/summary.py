"""The part of a result that trackers record: the one place that names its keys.

status
debug/blocks                              of a debug run alone
{dense,pruned,repaired}/<metric>          repaired/perplexity/test is what searches minimise
sparsity/{target,achieved,effective,achieved_of_all_parameters}
sparsity/block/<index>                    achieved
cost/<stage>/{seconds,peak_bytes,trained_parameters}
repair/<diagnostic>                       numbers only, such as repair/steps
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemend.result.curves import read_curves
from sparsemend.result.run_result import finite

SPARSITY = ("target", "achieved", "effective", "achieved_of_all_parameters")
BLOCK_COLUMNS = ("block", "asked", "achieved", "score")
STEPWISE = "train/"  # curves with a value per step stay in the CSV

Value = float | int | str | None


def summary_of(result: Mapping[str, Any]) -> dict[str, Value]:
    """The keys above that a result has so far; numbers that are not finite become None."""
    sparsity = result["sparsity"]
    flat: dict[str, Any] = {"status": result["status"]}
    if debug := result.get("config", {}).get("debug"):
        flat["debug/blocks"] = debug["blocks"]
    for state, metrics in result["metrics"].items():
        flat |= {f"{state}/{metric}": value for metric, value in metrics.items()}
    flat |= {f"sparsity/{key}": sparsity[key] for key in SPARSITY if key in sparsity}
    for block, achieved in sparsity.get("per_block", {}).items():
        flat[f"sparsity/block/{_index(block)}"] = achieved
    for stage, cost in result["cost"].items():
        plain = {key: value for key, value in cost.items() if not isinstance(value, Mapping)}
        flat |= {f"cost/{stage}/{key}": value for key, value in plain.items()}
    for key, value in result["repair"].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"repair/{key}"] = value
    return {key: finite(value) for key, value in flat.items()}


def block_rows(result: Mapping[str, Any]) -> list[list[Value]]:
    """A row of BLOCK_COLUMNS per block; empty before the sparsity is counted."""
    sparsity = result["sparsity"]
    asked, scores = sparsity.get("asked_per_block", {}), sparsity.get("scores", {})
    return [
        [_index(block), asked.get(block), achieved, finite(scores.get(block))]
        for block, achieved in sparsity.get("per_block", {}).items()
    ]


def metric_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[Value]]]:
    """(columns, rows): a row per state of the model, a column per metric."""
    states = result["metrics"]
    metrics = list(dict.fromkeys(name for values in states.values() for name in values))
    rows = [[state, *(finite(v.get(name)) for name in metrics)] for state, v in states.items()]
    return ["model", *metrics], rows


def curves_of(out: Path) -> dict[str, list[list[float]]]:
    """{name: [[step, value], ...]} of the training curves, without those of every step."""
    return {
        name: [[step, value] for step, value in points]
        for name, points in read_curves(out).items()
        if not name.startswith(STEPWISE)
    }


def _index(block: str) -> int:
    return int(block.rpartition(".")[2])

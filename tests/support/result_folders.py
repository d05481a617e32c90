"""Run folders as `sparsemend` leaves them, made up: a result.json, curves and supports."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsemend.result.run_result import RunResult
from sparsemend.result.runs import RunRecord
from sparsemend.sparse.mask_file import save_masks

TARGETS = {
    "pruner": "sparsemend.pruner.{}.X",
    "sparsity_schedule": "sparsemend.sparsity_schedule.{}.X",
    "method": "sparsemend.method.{}.X",
}
BLOCKS = 3


def result(
    *,
    pruned: float | None = 30.0,
    repaired: float = 20.0,
    dense: float = 15.0,
    seed: int = 0,
    sparsity: float = 0.6,
    pattern: str = "unstructured",
    pruner: str = "wanda",
    schedule: str = "uniform",
    method: str = "masked_lora",
    model: str = "tiny",
    name: str = "default",
    knobs: Mapping[str, Any] | None = None,
    schedule_knobs: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    variant: str | None = None,
    dirty: bool = False,
) -> dict[str, Any]:
    """A finished result; `knobs` are keys of the method."""
    sections = {"pruner": pruner, "sparsity_schedule": schedule, "method": method}
    config: dict[str, Any] = {k: {"_target_": TARGETS[k].format(v)} for k, v in sections.items()}
    config["method"] |= dict(knobs or {})
    config["sparsity_schedule"] |= dict(schedule_knobs or {})
    config |= {"model": {"name": model}, "data": dict(data or {"name": "python_docs"})}
    config |= {"seed": seed, "name": name, "variant": variant, "sparsity": sparsity}
    cost = {"seconds": 2.0, "peak_bytes": 2**20}
    metrics = {"dense": dense, "pruned": pruned, "repaired": repaired}
    known = {"corpus": "python_docs", "split": "test", "tokens": 1024, "windows": 4}
    known |= {"seqlen": 256, "dtype": "float32", "data_hash": "0" * 64, "calibration_samples": 4}
    return {
        "schema": "sparsemend-result-1",
        "status": "finished",
        "config": config,
        "config_hash": "0" * 64,
        "process": {"host": "here", "pid": 1},
        "provenance": {
            "commit": "c" * 40,
            "dirty": dirty,
            "packages": {"torch": "2"},
            "python": "3",
            "platform": "x",
            "device": "cpu",
        },
        "protocol": known | dict(protocol or {}),
        "sparsity": {
            "target": sparsity,
            "pattern": pattern,
            "achieved": sparsity,
            "per_block": {f"model.layers.{i}": sparsity for i in range(BLOCKS)},
        },
        "metrics": {state: {"perplexity/test": value} for state, value in metrics.items()},
        "cost": {"load": cost, "prune": cost, "repair": cost | {"trained_parameters": 10}},
        "repair": {},
        "error": None,
    }


def record_of(content: Mapping[str, Any], folder: Path | str = "x") -> RunRecord:
    """The run that left this result."""
    return RunRecord(Path(folder), RunResult.from_json(content))


def record(folder: Path | str = "x", **changes: Any) -> RunRecord:
    """The run whose result is `result(**changes)`."""
    return record_of(result(**changes), folder)


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """A run folder with this result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def with_errors(content: Mapping[str, Any], errors: list[float], growth: float) -> dict[str, Any]:
    """The same with measured block errors in the last state."""
    changed = copy.deepcopy(dict(content))
    found = {f"block_error/{i}": error for i, error in enumerate(errors)}
    changed["metrics"]["repaired"] |= found | {"block_error/growth": growth}
    return changed


def add_masks(folder: Path, keep: Tensor) -> None:
    """One support (O, I) as the run's masks.safetensors."""
    save_masks({"model.layers.0.q": keep.to(torch.bool)}, folder / "masks.safetensors")


def add_curves(folder: Path, part: str, rows: str) -> None:
    """training/metrics.csv with these rows."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / part / "metrics.csv").write_text(f"step,train/loss,validation/loss\n{rows}")

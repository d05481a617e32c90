"""`result.json`: what a run was, what it measured, what it cost.  The truth; trackers mirror it.

Written atomically when the run starts, after every stage and when it ends, also in failure.  The
schema is `result.schema.json` beside this file.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparsemend.blocks import block_index, find_blocks, prunable_linears
from sparsemend.files import write_json
from sparsemend.masks import LinearCount, SparseLinear, SparsityReport, count_zeros, zeros_of
from sparsemend.resume import config_hash, read_result
from sparsemend.stages import Stages

SCHEMA = "sparsemend-result-1"
PACKAGES = ("sparsemend", "torch", "lightning", "transformers", "datasets", "hydra-core")


class Result:
    """The growing content of one run's result.json."""

    def __init__(self, path: Path, cfg: DictConfig, *, resumed: bool = False) -> None:
        config = resolved(cfg)
        before = (read_result(path.parent) if resumed else None) or {}  # of the last attempt
        attempts = [*before.get("earlier_attempts", []), before["cost"]] if before else []
        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "config": config,
            "config_hash": config_hash(config),
            "process": {"host": platform.node(), "pid": os.getpid()},
            "provenance": provenance(),
            "protocol": dict(before.get("protocol", {})),
            "sparsity": {},
            "metrics": {},
            "cost": {},
            "earlier_attempts": attempts,
            "repair": {},
            "error": None,
        }

    def write(self) -> None:
        write_json(self.path, _finite(self.content))

    def costs(self, stages: Stages) -> None:
        """Copy the measured stages in and write."""
        self.content["peak_scope"] = stages.peak_scope
        for name, cost in stages.costs.items():
            kept = self.content["cost"].setdefault(name, {})
            kept.update(seconds=round(cost.seconds, 3), peak_bytes=cost.peak_bytes)
        self.write()

    def fail(self, error: BaseException) -> None:
        """Record why the run ended early and write."""
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        self.content["status"] = "interrupted" if stopped else "failed"
        self.content["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
        self.write()


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Exact zeros per linear, per block and of all parameters."""
    per_linear = {name: count_zeros(linear) for name, linear in prunable_linears(model).items()}
    prefix, _ = find_blocks(model)
    per_block: dict[str, LinearCount] = {}
    for name, count in per_linear.items():
        block = f"{prefix}.{block_index(name, prefix)}"
        per_block[block] = per_block.get(block, LinearCount(0, 0)) + count
    return SparsityReport(per_linear, per_block, sum(p.numel() for p in model.parameters()))


def asked_per_block(model: nn.Module, asked: Mapping[str, float]) -> dict[str, float]:
    """Block name -> parameter-weighted mean of the rates asked of its linears."""
    prefix, _ = find_blocks(model)
    removed: dict[str, float] = {}
    weights: dict[str, int] = {}
    for name, linear in prunable_linears(model).items():
        block = f"{prefix}.{block_index(name, prefix)}"
        size = linear.weight.numel()
        removed[block] = removed.get(block, 0.0) + asked[name] * size
        weights[block] = weights.get(block, 0) + size
    return {block: removed[block] / size for block, size in weights.items()}


@torch.no_grad()
def effective_sparsity(model: nn.Module) -> float:
    """Exact zeros of what forward multiplies by, over the prunable weights.

    Below the sparsity of the weights only where a dense adapter is kept beside them.
    """
    counts = [
        zeros_of(m.effective_weight() if isinstance(m, SparseLinear) else m.weight)
        for m in prunable_linears(model).values()
    ]
    return sum(counts, LinearCount(0, 0)).sparsity


def sparsity_section(
    report: SparsityReport,
    asked: Mapping[str, float],
    *,
    target: float,
    pattern: str,
    effective: float,
) -> dict[str, Any]:
    """The `sparsity` section: asked and achieved, of prunable and of all parameters."""
    return {
        "target": target,
        "pattern": pattern,
        "achieved": report.of_prunable,
        "effective": effective,
        "achieved_of_all_parameters": report.of_all,
        "prunable_weights": report.total.weights,
        "zeros": report.total.zeros,
        "per_block": {name: count.sparsity for name, count in report.per_block.items()},
        "per_linear": {
            name: {"asked": asked[name], "achieved": count.sparsity}
            for name, count in report.per_linear.items()
        },
    }


def provenance() -> dict[str, Any]:
    """Commit and cleanliness of the source tree (null outside git), packages, machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git in the source tree; None when the package is not run from a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _finite(value: Any) -> Any:
    """JSON has no infinity: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

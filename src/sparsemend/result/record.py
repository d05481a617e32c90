"""`result.json`: what a run was, what it measured, what it cost.  The truth; trackers mirror it.

Written atomically when the run starts, after every stage and when it ends, also in failure.  The
schema is `schema.json` beside this file.
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
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sparsemend.config.locations import PACKAGE
from sparsemend.config.values import config_hash, plain
from sparsemend.files import write_json
from sparsemend.names import METRIC, VALIDATION_METRIC
from sparsemend.result.folder import read_result

if TYPE_CHECKING:  # it imports torch
    from sparsemend.cost import Stages

SCHEMA = "sparsemend-result-1"
PACKAGES = ("sparsemend", "torch", "lightning", "transformers", "datasets", "hydra-core")


class Result:
    """The growing content of one run's result.json."""

    def __init__(self, path: Path, cfg: DictConfig, *, resumed: bool = False) -> None:
        config = plain(cfg)
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
            "message": str(error) or ("stopped by hand; resume=auto goes on" if stopped else ""),
            "traceback": "".join(traceback.format_exception(error)),
        }
        self.write()


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
    root = PACKAGE.parents[1]
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
    """`value` with null for every number that is not finite, since JSON has no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def objective_name(config: Mapping[str, Any]) -> str:
    """The metric that a job returns: the one a search selects by, else test perplexity."""
    select_on = (config.get("search") or {}).get("select_on", "test")
    return VALIDATION_METRIC if select_on == "validation" else METRIC


def objective(content: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """The objective in a finished result; NaN where it is not finite."""
    value = content["metrics"]["repaired"].get(objective_name(config))
    return math.nan if value is None else float(value)

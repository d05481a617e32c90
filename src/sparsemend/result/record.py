"""`result.json`: what a run was, what it measured, what it cost.  The truth; trackers mirror it.

Written atomically when the run starts, after every stage and when it ends, also in failure.  The
schema is `schema.json` beside this file.
"""

from __future__ import annotations

import logging
import math
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
from sparsemend.result.folder import read_result, this_process
from sparsemend.result.run_result import SCHEMA, RunResult, finite
from sparsemend.result.sections import Provenance, costs_to_json

if TYPE_CHECKING:  # it imports torch
    from sparsemend.cost import Cost, Stages

log = logging.getLogger(__name__)

RUNNING = "running"
STOPPED = "stopped by Ctrl-C or by a signal; resume=auto goes on"  # an exit code says less
PACKAGES = ("sparsemend", "torch", "lightning", "transformers", "datasets", "hydra-core")


class Result:
    """The growing content of one run's result.json."""

    def __init__(self, path: Path, cfg: DictConfig, *, resumed: bool = False) -> None:
        config = plain(cfg)
        before = read_result(path.parent) if resumed else None  # of the last attempt
        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "status": RUNNING,
            "config": config,
            "config_hash": config_hash(config),
            "process": this_process().to_json(),
            "provenance": provenance().to_json(),
            "protocol": before.protocol.to_json() if before else {},
            "sparsity": {},
            "metrics": {},
            "cost": {},
            "earlier_attempts": list(map(costs_to_json, before.attempts)) if before else [],
            "repair": {},
            "error": None,
        }

    @property
    def record(self) -> RunResult:
        """The content so far, typed."""
        return RunResult.from_json(finite(self.content))

    def write(self) -> None:
        """Write what the sections hold; raises ValueError on a key that none of them has."""
        written = self.record.to_json()
        check_complete(self.content, written)
        write_json(self.path, written)

    def costs(self, stages: Stages) -> None:
        """Copy the measured stages in and write."""
        self.content["peak_scope"] = stages.peak_scope
        for name, cost in stages.costs.items():
            kept = self.content["cost"].setdefault(name, {})
            kept.update(_spent(cost))
            if cost.parts:
                kept["by_state"] = {state: _spent(part) for state, part in cost.parts.items()}
        self.write()

    def fail(self, error: BaseException, stages: Stages | None = None) -> None:
        """Record why the run ended early, and what it spent, and write, unless it has ended.

        A disk that takes no more must not hide `error`, which the caller raises.
        """
        if self.content["status"] != RUNNING:
            return
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        self.content["status"] = "interrupted" if stopped else "failed"
        self.content["error"] = {
            "type": type(error).__name__,
            "message": STOPPED if stopped else str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
        try:
            self.write() if stages is None else self.costs(stages)
        except OSError as unwritten:
            log.error("%s could not be written: %s", self.path, unwritten)


def _spent(cost: Cost) -> dict[str, float]:
    return {"seconds": round(cost.seconds, 3), "peak_bytes": cost.peak_bytes}


def check_complete(content: Mapping[str, Any], written: Mapping[str, Any], at: str = "") -> None:
    """Raise ValueError, naming the key, where something in `content` would not be written."""
    for key, value in content.items():
        if key not in written and value not in (None, {}):
            raise ValueError(
                f"a result.json has no {at}{key}; give it a field in result/sections.py and a "
                "line in result/schema.json"
            )
        if isinstance(value, Mapping) and value:
            check_complete(value, written[key], f"{at}{key}.")


def provenance() -> Provenance:
    """Commit and cleanliness of the source tree (None outside git), packages, machine."""
    return Provenance(
        commit=_git("rev-parse", "HEAD"),
        dirty=None if (status := _git("status", "--porcelain")) is None else bool(status),
        packages={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
    )


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


def objective_name(config: Mapping[str, Any]) -> str:
    """The metric that a job returns: the one a search selects by, else test perplexity."""
    select_on = (config.get("search") or {}).get("select_on", "test")
    return VALIDATION_METRIC if select_on == "validation" else METRIC


def objective(result: RunResult, config: Mapping[str, Any]) -> float:
    """The objective in a finished result; NaN where it is not finite."""
    value = result.metric("repaired", objective_name(config))
    return math.nan if value is None else value

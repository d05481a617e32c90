"""Read the settings that all runs of one arena share, from configs and results, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.flags import says
from sparsemend.config.keys import keys_that
from sparsemend.config.locations import conf_folder
from sparsemend.config.members import member_yaml
from sparsemend.config.renamed import check_stored
from sparsemend.config.values import differences
from sparsemend.names import HARNESS, METRIC
from sparsemend.result.runs import RunRecord

BUDGETS = ("tokens", "trainable", "seconds")
SHARED = keys_that("shared_by_arena_rows")
# all other keys of the `arena` section belong to one row
SHARED_ARENA = (
    *("items", "steps", "windows_per_step", "validate_every", "validation_windows"),
    *("rates", "rank", "seconds"),
)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's config that all rows of its arena share."""
    arena = config.get("arena") or {}
    zero_shot = (config.get("evaluation") or {}).get(HARNESS) or {}
    tasks = {key: zero_shot.get(key) for key in ("suite", "tasks", "limit")}
    return {
        **{key: config.get(key) for key in SHARED},
        "arena": {key: arena.get(key) for key in SHARED_ARENA},
        "evaluation": {HARNESS: tasks},
    }


def check_one_setting(runs: list[RunRecord]) -> None:
    """Raise ValueError, naming two runs, where runs differ in a setting that must be equal."""
    for run in runs:
        check_stored(run.config, run.folder)
    first, shared = runs[0], _measured_settings(runs[0])
    for run in runs[1:]:
        if mismatches := differences(shared, _measured_settings(run)):
            raise ValueError(
                f"two arenas cannot share a table, they differ in {'; '.join(mismatches[:4])}\n"
                f"  there: {first.folder}\n  here: {run.folder}\ngive the folders of one of them"
            )


def _measured_settings(run: RunRecord) -> dict[str, Any]:
    """The shared settings of a finished run, and the conditions of its measurement."""
    result = run.result
    return {
        **settings_of(run.config),
        "protocol": run.protocol(METRIC).label,
        "data_hash": result.protocol.data_hash,
        "device": result.provenance.device,
        "peak_scope": result.peak_scope,
    }


def low_rank_rows() -> list[str]:
    """The shipped rows whose parameters set the budget of arena budget=trainable."""
    rows = sorted(path.stem for path in (conf_folder() / "arena").glob("*.yaml"))
    named = [row for row in rows if (conf_folder() / "method" / f"{row}.yaml").is_file()]
    return [row for row in named if says(member_yaml("method", row), "low_rank")]

"""What all runs of one arena have in common: read from configs and results, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.config.values import differences
from sparsemend.names import HARNESS, METRIC
from sparsemend.result.runs import RunRecord

BUDGETS = ("tokens", "trainable", "seconds")
LOW_RANK = ("lora", "masked_lora", "lors", "lora_prune")  # whose parameters are the budget's
SHARED = (
    *("model", "data", "pruner", "sparsity_schedule", "sparsity", "pattern", "pattern_tail"),
    *("rounding", "statistics", "budget"),
)
# the others are a row's own
SHARED_ARENA = (
    *("items", "steps", "batch_size", "accumulate", "validate_every", "validation_windows"),
    *("rates", "rank", "seconds"),
)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's config its arena's other rows have too."""
    arena = config.get("arena") or {}
    zero_shot = (config.get("evaluation") or {}).get(HARNESS) or {}
    tasks = {key: zero_shot.get(key) for key in ("suite", "tasks", "limit")}
    return {
        **{key: config.get(key) for key in SHARED},
        "arena": {key: arena.get(key) for key in SHARED_ARENA},
        "evaluation": {HARNESS: tasks},
    }


def check_one_setting(runs: list[RunRecord]) -> None:
    """All runs agree in what must be equal; ValueError names two that do not."""
    first, shared = runs[0], _measured_settings(runs[0])
    for run in runs[1:]:
        if found := differences(shared, _measured_settings(run)):
            raise ValueError(
                f"two arenas cannot share a table, they differ in {'; '.join(found[:4])}\n"
                f"  there: {first.folder}\n  here: {run.folder}\ngive the folders of one of them"
            )


def _measured_settings(run: RunRecord) -> dict[str, Any]:
    """The settings of a finished run, and what it was measured with."""
    content = run.content
    return {
        **settings_of(run.config),
        "protocol": run.protocol(METRIC).label,
        "data_hash": content["protocol"].get("data_hash"),
        "device": content.get("provenance", {}).get("device"),
        "peak_scope": content.get("peak_scope"),
    }

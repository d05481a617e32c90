"""Group runs as the report shows them: one group per model, row and setting, over its seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import safe_open

from sparsemend.names import MASKS
from sparsemend.result.curves import read_curves
from sparsemend.result.runs import Row, RunRecord
from sparsemend.table.grouping import Group, group_states

STAGES = ("load", "evaluate", "prune", "repair", "export")


def groups(runs: Sequence[RunRecord]) -> list[Group]:
    """The runs by model and row; within one, by the knobs in which they differ."""
    return sorted(group_states(_last_state(run) for run in runs), key=_order)


def _last_state(run: RunRecord) -> tuple[Row, str, RunRecord]:
    """The row and state that a run ends with: repaired, or pruned where nothing repairs."""
    if run.row.method == "none":
        return run.pruned_row, "pruned", run
    return run.row, "repaired", run


def with_unrepaired(run_groups: Sequence[Group]) -> list[Group]:
    """The groups, and groups of the pruned states that were repaired, each seed once."""
    rows = {(group.model, group.row) for group in run_groups}
    seeds: dict[tuple[str, Row, str, int], RunRecord] = {}
    for run in (run for group in run_groups for run in group.runs):
        if "pruned" in run.result.metrics and (run.model, run.pruned_row) not in rows:
            key = (run.model, run.pruned_row, repr(run.settings("pruned")), run.seed)
            seeds.setdefault(key, run)
    added = group_states((run.pruned_row, "pruned", run) for run in seeds.values())
    return sorted([*run_groups, *added], key=_order)


def _order(group: Group) -> tuple[Any, ...]:
    row = group.row
    members = (row.pruner, row.schedule != "uniform", row.schedule, row.method != "none")
    values = tuple((str(type(v)), v) for v in group.settings.values())
    return (group.model, row.sparsity, row.pattern, *members, row.method, values)


def names(run_groups: Sequence[Group]) -> list[str]:
    """A label per group: its series, with the amount and the model where those differ."""
    several_models = len({group.model for group in run_groups}) > 1
    several_amounts = len({group.row.amount for group in run_groups}) > 1
    return [
        (f"{g.model}  " if several_models else "")
        + (f"{g.row.amount}  " if several_amounts else "")
        + g.series
        for g in run_groups
    ]


def styles(run_groups: Sequence[Group]) -> list[tuple[int, int]]:
    """(colour, dash) per group: one colour per series, one dash per amount, on the whole page."""
    everything = with_unrepaired(run_groups)
    series = list(dict.fromkeys((group.model, group.series) for group in everything))
    amounts = list(dict.fromkeys(group.row.amount for group in everything))
    return [(series.index((g.model, g.series)), amounts.index(g.row.amount)) for g in run_groups]


def block_values(values: Mapping[str, float]) -> list[float]:
    """The values in order of their block's number, in which each key ends."""
    numbered = {int(key.replace("/", ".").rpartition(".")[2]): v for key, v in values.items()}
    return [numbered[index] for index in sorted(numbered)]


def block_errors(run: RunRecord, state: str) -> list[float]:
    """The measured error of every block, empty where the run did not measure it."""
    metrics = run.result.metrics.get(state, {})
    errors = {k: v for k, v in metrics.items() if k.startswith("block_error/") and v is not None}
    return block_values({k: v for k, v in errors.items() if k.rpartition("/")[2].isdigit()})


def total_seconds(run: RunRecord) -> float:
    """Seconds of all measured stages."""
    return sum(run.seconds(stage) for stage in STAGES)


def peak_bytes(run: RunRecord) -> float:
    """The highest peak of any stage."""
    return max(run.peak_bytes(stage) for stage in STAGES)


def difference_of(run: RunRecord) -> float | None:
    """The common difference of a run with that schedule."""
    difference = run.config["sparsity_schedule"].get("common_difference")
    return None if difference is None else float(difference)


def curve(run: RunRecord, column: str) -> list[tuple[float, float]]:
    """(step, value) of one column of the training curves, over all parts of a resumed run."""
    points = read_curves(run.folder).get(column, [])
    return [(step, value) for step, value in points if math.isfinite(value)]


@dataclass(frozen=True)
class Supports:
    """Packed supports of one run, one bit per weight."""

    packed: Mapping[str, np.ndarray[Any, np.dtype[np.uint8]]]
    shapes: Mapping[str, Sequence[int]]

    def overlap(self, other: Supports) -> float:
        """|kept by both| / |kept by either|; padding bits are 0 in both."""
        both = either = 0
        for name, bits in self.packed.items():
            both += _ones(bits & other.packed[name])
            either += _ones(bits | other.packed[name])
        return both / either if either else 1.0


def supports(run: RunRecord) -> Supports | None:
    """The supports that a run ended with, None where it left none."""
    path = run.folder / MASKS
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        shapes = json.loads((file.metadata() or {})["shapes"])
        packed = {name: _without_padding(file.get_tensor(name), shapes[name][1]) for name in shapes}
    return Supports(packed, shapes)


def _without_padding(packed: np.ndarray[Any, Any], inputs: int) -> np.ndarray[Any, Any]:
    """Set the bits beyond the last input to 0, whatever wrote them, and return `packed`."""
    if inputs % 8:
        packed[:, -1] &= np.uint8((1 << inputs % 8) - 1)
    return packed


def _ones(packed: np.ndarray[Any, Any]) -> int:
    return (
        int(np.bitwise_count(packed).sum()) if hasattr(np, "bitwise_count") else _count_ones(packed)
    )


def _count_ones(packed: np.ndarray[Any, Any]) -> int:
    return int(np.unpackbits(packed).sum())

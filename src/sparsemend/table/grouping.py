"""Runs of one model and row, told apart by the knobs in which they differ, over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemend.result.runs import Row, RunRecord


@dataclass(frozen=True)
class Ours:
    """Our number: one value per seed."""

    values: tuple[float, ...]
    runs: int
    dirty: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample deviation over seeds, None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    model: str
    row: Row
    state: str  # of the model that the row is about: dense, pruned or repaired
    settings: Mapping[str, Any]  # the knobs that tell it from the others of its row
    runs: tuple[RunRecord, ...]

    @property
    def series(self) -> str:
        """The group's name without the sparsity, for a line over sparsities."""
        return f"{self.row.label}{self.variant}{knobs(self.settings)}"

    @property
    def variant(self) -> str:
        """` (VARIANT)`, empty where its row has none."""
        return "" if self.row.variant == "-" else f" ({self.row.variant})"

    @property
    def allocation(self) -> str:
        """The schedule, its settings and the pruner, which decide the sparsity of the blocks."""
        schedule_settings = {
            key: value for key, value in self.settings.items() if "schedule" in key
        }
        return f"{self.row.schedule}{knobs(schedule_settings)} ({self.row.pruner})"

    def mean(self, read: Callable[[RunRecord], float | None]) -> float | None:
        """Mean over seeds of the values that `read` returns; None where it returns none."""
        ours = self.ours(read)
        return None if ours is None else ours.mean

    def deviation(self, read: Callable[[RunRecord], float | None]) -> float:
        """Sample deviation over seeds, 0 for a single one."""
        ours = self.ours(read)
        return 0.0 if ours is None else ours.deviation or 0.0

    def ours(self, read: Callable[[RunRecord], float | None]) -> Ours | None:
        """Our number, of the runs for which `read` returns a value; None where it returns none."""
        pairs = [(run, value) for run in self.runs if (value := read(run)) is not None]
        return ours_of(pairs) if pairs else None

    def metric(self, name: str) -> float | None:
        """Mean of a metric of its state."""
        ours = self.measurement(name)
        return None if ours is None else ours.mean

    def metric_deviation(self, name: str) -> float:
        """Deviation of a metric of its state, 0 for a single seed."""
        ours = self.measurement(name)
        return 0.0 if ours is None else ours.deviation or 0.0

    def measurement(self, name: str) -> Ours | None:
        """Our number of a metric of its state."""
        return self.ours(lambda run: run.value(self.state, name))


def knobs(settings: Mapping[str, Any]) -> str:
    """`, rank=8, alpha=16` of settings by dotted key."""
    return "".join(f", {key.rpartition('.')[2]}={value}" for key, value in settings.items())


def group_states(members: Iterable[tuple[Row, str, RunRecord]]) -> list[Group]:
    """Runs by model and row, and within one row by the knobs in which its runs differ.

    members: (row, state, run); the state says which of a run's knobs count.  In order of first
    appearance.
    """
    rows: dict[tuple[str, Row, str], list[RunRecord]] = {}
    for row, state, run in members:
        rows.setdefault((run.model, row, state), []).append(run)
    return [
        Group(model, row, state, distinction, tuple(same))
        for (model, row, state), runs in rows.items()
        for distinction, same in by_settings(runs, state)
    ]


def by_settings(
    runs: Sequence[RunRecord], state: str
) -> list[tuple[dict[str, Any], list[RunRecord]]]:
    """(the knobs that tell them apart, the runs that agree in them) of runs of one row."""
    settings = [run.settings(state) for run in runs]
    keys = differing(settings)
    parts: dict[str, tuple[dict[str, Any], list[RunRecord]]] = {}
    for run, run_settings in zip(runs, settings, strict=True):
        distinction = {key: run_settings.get(key, "unset") for key in keys}
        parts.setdefault(repr(distinction), (distinction, []))[1].append(run)
    return list(parts.values())


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which some of the settings differ."""
    keys = {key for run_settings in settings for key in run_settings}
    return sorted(
        k
        for k in keys
        if len({repr(run_settings.get(k, "unset")) for run_settings in settings}) > 1
    )


def ours_of(pairs: Sequence[tuple[RunRecord, float]]) -> Ours:
    """Our number with one value per seed.

    Runs that repeat a seed (other methods on one pruned model) are averaged.
    """
    seeds: dict[int, list[float]] = {}
    for run, value in pairs:
        seeds.setdefault(run.seed, []).append(value)
    values = tuple(statistics.fmean(same) for same in seeds.values())
    return Ours(values, len(pairs), any(run.dirty for run, _ in pairs))

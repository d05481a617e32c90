"""The arena: finished runs of `experiment=arena` as rows that may be compared.

A row is one member of conf/arena with one run per seed.  All rows agree in model, pruning and
protocol.  What is equal is the budget: tokens read in training, trained parameters, or seconds of
repair; a row's share of it says whether it kept to it, and only rows that did can be the best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsemend.metric_names import HARNESS, MEAN, METRIC
from sparsemend.paired_bootstrap import Ratio, perplexity_ratio
from sparsemend.paper_table import Ours, ours_of
from sparsemend.runs import Run, find_runs
from sparsemend.window_losses import read_losses

ZERO_SHOT = MEAN
BUDGETS = ("tokens", "trainable", "seconds")
LOW_RANK = ("lora", "masked_lora", "lors", "lora_prune")  # whose parameters are the budget's
TOLERANCE = 0.05  # of the budget; whole groups, deltas and epochs do not come out even
DENSE = "dense"


@dataclass(frozen=True)
class Entry:
    """One row: what it reached, and what it took."""

    row: str
    state: str  # of its runs that is measured
    runs: tuple[Run, ...]  # by seed

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def ours(self, metric: str) -> Ours | None:
        """Mean and deviation over seeds; None where a run lacks the metric."""
        found = [(run, run.value(self.state, metric)) for run in self.runs]
        known = [(run, value) for run, value in found if value is not None]
        return ours_of(known) if len(known) == len(found) else None

    @property
    def perplexity(self) -> float:
        ours = self.ours(METRIC)
        return float("inf") if ours is None else ours.mean

    def cost(self, name: str) -> float:
        """Mean over seeds of seconds, peak_bytes, trained, tokens, of the repair alone."""
        return statistics.fmean(_cost(run, name) for run in self.runs)

    @property
    def sparsity(self) -> float:
        """The lowest sparsity of what is multiplied by, over seeds."""
        return min(float(run.content["sparsity"]["effective"]) for run in self.runs)

    @property
    def foldable(self) -> bool:
        return all(run.content["repair"].get("foldable", True) for run in self.runs)

    def losses(self, seeds: Sequence[int]) -> np.ndarray | None:
        """(S, W) losses of the test windows by seed; None where a run kept none."""
        by_seed = {run.seed: run for run in self.runs}
        found = [read_losses(by_seed[seed].folder, self.state, METRIC) for seed in seeds]
        known = [losses for losses in found if losses is not None]
        return np.stack(known) if len(known) == len(found) and known else None


@dataclass(frozen=True)
class Arena:
    """Rows by perplexity, the budget, who is best, how far the others are from it."""

    budget: str
    amount: float  # of the budget; tokens, parameters or seconds
    dense: Entry
    entries: tuple[Entry, ...]
    best: Entry
    ratios: Mapping[str, Ratio]  # by row, against the best

    def share(self, entry: Entry) -> float:
        """How much of the budget a row used."""
        name = {"tokens": "tokens", "trainable": "trained", "seconds": "seconds"}[self.budget]
        return entry.cost(name) / self.amount

    def within(self, entry: Entry) -> bool:
        """Whether a row used no more than the budget."""
        return self.share(entry) <= 1 + TOLERANCE


def read_arena(folders: Sequence[Path]) -> Arena:
    """The arena under these folders; ValueError where runs do not belong into one table."""
    runs = [run for run in find_runs(folders) if _is_row(run)]
    if not runs:
        raise ValueError(
            f"no row of an arena under {', '.join(map(str, folders))}; run "
            "sparsemend -m experiment=arena, or give its folder"
        )
    _check_one_setting(runs)
    rows: dict[str, dict[int, Run]] = {}
    for run in runs:  # of two runs of a row and seed the later folder counts
        rows.setdefault(run.config["arena"]["row"], {})[run.seed] = run
    entries = tuple(
        sorted(
            (Entry(row, "repaired", tuple(of[s] for s in sorted(of))) for row, of in rows.items()),
            key=lambda entry: entry.perplexity,
        )
    )
    budget = str(runs[0].config["budget"])
    amount = _amount(budget, runs[0].config, entries)
    arena = Arena(budget, amount, _dense(entries), entries, entries[0], {})
    allowed = [entry for entry in entries if arena.within(entry) and entry.foldable]
    best = (allowed or list(entries))[0]
    return Arena(budget, amount, arena.dense, entries, best, _ratios(entries, best))


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other is at least as good as in both of (cost, perplexity), by cost.

    Of equal points the first counts.
    """
    front, least = [], float("inf")
    for name, (_, value) in sorted(points.items(), key=lambda item: item[1]):
        if value < least:
            front.append(name)
            least = value
    return front


def _is_row(run: Run) -> bool:
    arena = run.config.get("arena") or {}
    return bool(arena.get("row")) and not arena.get("pilot")


def _dense(entries: Sequence[Entry]) -> Entry:
    """The dense model, as the row that asked it most has it."""
    source = max(entries, key=lambda e: e.runs[0].value(DENSE, ZERO_SHOT) is not None)
    return Entry(DENSE, DENSE, source.runs)


def _ratios(entries: Sequence[Entry], best: Entry) -> dict[str, Ratio]:
    found = {}
    for entry in entries:
        seeds = [seed for seed in best.seeds if seed in entry.seeds]
        theirs, ours = (e.losses(seeds) if seeds else None for e in (entry, best))
        if entry is not best and theirs is not None and ours is not None:
            found[entry.row] = perplexity_ratio(theirs, ours)
    return found


def _cost(run: Run, name: str) -> float:
    repair, cost = run.content["repair"], run.content["cost"].get("repair", {})
    if name == "tokens":
        return float(repair.get("tokens", 0))
    return float(cost.get("trained_parameters" if name == "trained" else name, 0))


def _amount(budget: str, config: Mapping[str, Any], entries: Sequence[Entry]) -> float:
    """What every row is given: asked for by the config, or what low-rank rows train."""
    arena = config["arena"]
    if budget == "seconds":
        return float(arena["seconds"])
    name = "tokens" if budget == "tokens" else "trained"
    low_rank = [entry for entry in entries if entry.row in LOW_RANK]
    trained = [entry for entry in low_rank or entries if entry.cost(name)]
    return statistics.median(entry.cost(name) for entry in trained) if trained else 1.0


SETTINGS: dict[str, Callable[[Run], object]] = {
    "model": lambda run: run.model,
    "pruner": lambda run: run.member("pruner"),
    "sparsity_schedule": lambda run: run.member("sparsity_schedule"),
    "sparsity": lambda run: run.config["sparsity"],
    "pattern": lambda run: run.config["pattern"],
    "rounding": lambda run: run.config.get("rounding"),
    "budget": lambda run: run.config["budget"],
    "protocol": lambda run: run.protocol(METRIC).label,
    "task items": lambda run: (run.config["evaluation"].get(HARNESS) or {}).get("limit"),
}


def _check_one_setting(runs: Sequence[Run]) -> None:
    """All runs agree in what must be equal; ValueError names two that do not."""
    first = runs[0]
    for run in runs[1:]:
        for name, setting in SETTINGS.items():
            if setting(run) != setting(first):
                raise ValueError(
                    f"two arenas cannot share a table, they differ in {name}:\n"
                    f"  {setting(first)} ({first.folder})\n  {setting(run)} ({run.folder})\n"
                    "give the folders of one of them"
                )

"""The arena: finished runs of `experiment=arena` as rows that may be compared.

A row is one member of conf/arena with one run per seed.  All rows agree in model, pruning and
protocol.  They have the same budget: tokens read in training, trained parameters, or seconds of
repair; a row's share of it says whether the row kept to it, and only rows that did can be the best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparsemend.config.flags import says
from sparsemend.config.values import differences
from sparsemend.names import MEAN, METRIC
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.arena.interval import Ratio, perplexity_ratio
from sparsemend.sweep.arena.settings import check_one_setting, low_rank_rows
from sparsemend.table.grouping import Ours, ours_of

ZERO_SHOT = MEAN
TOLERANCE = 0.05  # of the budget, which whole groups, deltas and epochs do not hit exactly
DENSE = "dense"


@dataclass(frozen=True)
class ArenaRow:
    """One row of an arena: its runs, the quality they reached and their cost."""

    row: str
    state: str  # the measured state of its runs
    runs: tuple[RunRecord, ...]  # by seed

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def ours(self, metric: str) -> Ours | None:
        """Mean and deviation over seeds; None where a run lacks the metric."""
        pairs = [(run, run.value(self.state, metric)) for run in self.runs]
        complete = [(run, value) for run, value in pairs if value is not None]
        return ours_of(complete) if len(complete) == len(pairs) else None

    @property
    def perplexity(self) -> float:
        """Mean over seeds; infinite where a run has none or one that is not finite."""
        ours = self.ours(METRIC)
        return ours.mean if ours is not None and math.isfinite(ours.mean) else math.inf

    def cost(self, name: str) -> float:
        """Mean over seeds of one cost of the repair alone: seconds, peak_bytes, trained or tokens.

        A run that was continued counts the seconds of all its attempts.
        """
        return statistics.fmean(_cost(run, name) for run in self.runs)

    @property
    def partly_timed(self) -> bool:
        """Whether an attempt was killed during the repair, so that its seconds are not recorded."""
        earlier = (cost for run in self.runs for cost in run.result.earlier_attempts)
        return any("prune" in cost and "repair" not in cost for cost in earlier)

    @property
    def sparsity(self) -> float:
        """The lowest sparsity, over seeds, of the weights that the forward pass multiplies by."""
        return min(run.sparsity for run in self.runs)

    @property
    def foldable(self) -> bool:
        return all(run.foldable for run in self.runs)

    def losses(self, seeds: Sequence[int]) -> np.ndarray | None:
        """Losses (S, W) of the test windows, a row per seed; None where a run stored none."""
        by_seed = {run.seed: run for run in self.runs}
        by_run = [read_losses(by_seed[seed].folder, self.state, METRIC) for seed in seeds]
        arrays = [losses for losses in by_run if losses is not None]
        return np.stack(arrays) if len(arrays) == len(by_run) and arrays else None


@dataclass(frozen=True)
class Arena:
    """Rows by perplexity, their budget, the best row, and how far the others are from it."""

    budget: str
    amount: float  # of the budget; tokens, parameters or seconds
    seeds: tuple[int, ...]
    dense: ArenaRow
    entries: tuple[ArenaRow, ...]
    best: ArenaRow
    ratios: Mapping[str, Ratio]  # by row, against the best

    def share(self, entry: ArenaRow) -> float:
        """How much of the budget a row used."""
        name = {"tokens": "tokens", "trainable": "trained", "seconds": "seconds"}[self.budget]
        return entry.cost(name) / self.amount

    def within(self, entry: ArenaRow) -> bool:
        """Whether a row used no more than the budget."""
        return self.share(entry) <= 1 + TOLERANCE

    def eligible(self, entry: ArenaRow) -> bool:
        """Whether a row may be the best: within the budget, foldable, finite, with every seed."""
        whole = entry.seeds == self.seeds and math.isfinite(entry.perplexity)
        return whole and entry.foldable and self.within(entry)


def read_arena(folders: Sequence[Path]) -> Arena:
    """Read the arena under these folders; raises ValueError where runs do not fit one table."""
    runs = [run for run in find_runs(folders) if _is_row(run)]
    if not runs:
        raise ValueError(
            f"no row of an arena under {', '.join(map(str, folders))}; run "
            "sparsemend -m experiment=arena, or give its folder"
        )
    check_one_setting(runs)
    rows = _rows(runs)
    entries = tuple(
        sorted(
            (
                ArenaRow(row, "repaired", tuple(by_seed[s] for s in sorted(by_seed)))
                for row, by_seed in rows.items()
            ),
            key=lambda entry: entry.perplexity,
        )
    )
    seeds = tuple(sorted({seed for entry in entries for seed in entry.seeds}))
    budget = str(runs[0].config["budget"])
    amount = _amount(budget, runs[0], entries)
    arena = Arena(budget, amount, seeds, _dense(entries), entries, entries[0], {})
    best = next((entry for entry in entries if arena.eligible(entry)), entries[0])
    return replace(arena, best=best, ratios=_ratios(entries, best))


def _rows(runs: Sequence[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Runs by row and seed; of two runs with one configuration, that of the later folder counts."""
    rows: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        row = run.config["arena"]["row"]
        earlier = rows.setdefault(row, {}).get(run.seed)
        if earlier is not None:
            mismatches = differences(earlier.config, run.config)
            if mismatches:
                raise ValueError(
                    f"row {row} with seed {run.seed} is there twice, and differs in "
                    f"{mismatches[0]}\n  there: {earlier.folder}\n  here: {run.folder}\n"
                    "give the folders of one arena"
                )
        rows[row][run.seed] = run
    return rows


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points on the Pareto front of (cost, perplexity), by cost.

    A point is on it if no other is at least as good in both; of equal points the first counts.
    """
    front, least = [], float("inf")
    for name, (_, value) in sorted(points.items(), key=lambda item: item[1]):
        if value < least:
            front.append(name)
            least = value
    return front


def _is_row(run: RunRecord) -> bool:
    arena = run.config.get("arena") or {}
    return bool(arena.get("row")) and not arena.get("pilot")


def _dense(entries: Sequence[ArenaRow]) -> ArenaRow:
    """The dense model as a row, from the runs of a row that measured its zero-shot mean, if any."""
    source = max(entries, key=lambda e: e.runs[0].value(DENSE, ZERO_SHOT) is not None)
    return ArenaRow(DENSE, DENSE, source.runs)


def _ratios(entries: Sequence[ArenaRow], best: ArenaRow) -> dict[str, Ratio]:
    ratios = {}
    for entry in entries:
        seeds = [seed for seed in best.seeds if seed in entry.seeds]
        entry_losses, best_losses = (e.losses(seeds) if seeds else None for e in (entry, best))
        if entry is best or entry_losses is None or best_losses is None:
            continue
        if np.isfinite(entry_losses).all() and np.isfinite(best_losses).all():
            ratios[entry.row] = perplexity_ratio(entry_losses, best_losses)
    return ratios


def _cost(run: RunRecord, name: str) -> float:
    if name == "tokens":
        return float(run.result.repair.diagnostics.get("tokens", 0))
    if name == "trained":
        return float(run.trained_parameters)
    return run.seconds("repair") if name == "seconds" else run.peak_bytes("repair")


def _amount(budget: str, run: RunRecord, entries: Sequence[ArenaRow]) -> float:
    """The amount of the budget that every row gets.

    Seconds and tokens follow from the config; for parameters it is the median that low-rank rows
    train.
    """
    arena = run.config["arena"]
    if budget == "seconds":
        return float(arena["seconds"])
    low_rank = [entry for entry in entries if says(entry.runs[0].config["method"], "low_rank")]
    if budget == "tokens":
        return float(arena["steps"] * arena["windows_per_step"] * _window(low_rank, run))
    if not low_rank:
        raise ValueError(
            "budget=trainable is what low-rank rows train, and none of them is here; give the "
            f"folder of a run with arena={low_rank_rows()[-1]} or the like"
        )
    return statistics.median(entry.cost("trained") for entry in low_rank)


def _window(low_rank: Sequence[ArenaRow], run: RunRecord) -> float:
    """The tokens of a training window, as a low-rank row counted them, else of a test window."""
    for entry in low_rank:
        repair = entry.runs[0].result.repair.diagnostics
        windows = repair.get("steps", 0) * repair.get("windows_per_step", 0)
        if windows:
            return float(repair["tokens"] / windows)
    return float(run.result.protocol.seqlen)

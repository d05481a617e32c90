"""The arena: finished runs of `experiment=arena` as rows that may be compared.

A row is one member of conf/arena with one run per seed.  All rows agree in model, pruning and
protocol.  What is equal is the budget: tokens read in training, trained parameters, or seconds of
repair; a row's share of it says whether it kept to it, and only rows that did can be the best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparsemend.config.values import differences
from sparsemend.names import MEAN, METRIC
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.arena.bootstrap import Ratio, perplexity_ratio
from sparsemend.sweep.arena.settings import LOW_RANK, check_one_setting
from sparsemend.table.paper_table import Ours, ours_of

ZERO_SHOT = MEAN
TOLERANCE = 0.05  # of the budget; whole groups, deltas and epochs do not come out even
DENSE = "dense"


@dataclass(frozen=True)
class ArenaRow:
    """One row: what it reached, and what it took."""

    row: str
    state: str  # of its runs that is measured
    runs: tuple[RunRecord, ...]  # by seed

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
        """Mean over seeds; infinite where a run has none or one that is not finite."""
        ours = self.ours(METRIC)
        return ours.mean if ours is not None and math.isfinite(ours.mean) else math.inf

    def cost(self, name: str) -> float:
        """Mean over seeds of seconds, peak_bytes, trained, tokens, of the repair alone.

        A run that was continued has the seconds of all its attempts.
        """
        return statistics.fmean(_cost(run, name) for run in self.runs)

    @property
    def partly_timed(self) -> bool:
        """Whether an attempt was killed within the repair, whose seconds nobody noted."""
        earlier = (cost for run in self.runs for cost in run.attempts[:-1])
        return any("prune" in cost and "repair" not in cost for cost in earlier)

    @property
    def sparsity(self) -> float:
        """The lowest sparsity of what is multiplied by, over seeds."""
        return min(run.sparsity for run in self.runs)

    @property
    def foldable(self) -> bool:
        return all(run.foldable for run in self.runs)

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
    """The arena under these folders; ValueError where runs do not belong into one table."""
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
                ArenaRow(row, "repaired", tuple(of[s] for s in sorted(of)))
                for row, of in rows.items()
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
    """Runs by row and seed; of two runs of one configuration the later folder counts."""
    rows: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        row = run.config["arena"]["row"]
        known = rows.setdefault(row, {}).get(run.seed)
        if known is not None:
            found = differences(known.config, run.config)
            if found:
                raise ValueError(
                    f"row {row} with seed {run.seed} is there twice, and differs in {found[0]}\n"
                    f"  there: {known.folder}\n  here: {run.folder}\ngive the folders of one arena"
                )
        rows[row][run.seed] = run
    return rows


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


def _is_row(run: RunRecord) -> bool:
    arena = run.config.get("arena") or {}
    return bool(arena.get("row")) and not arena.get("pilot")


def _dense(entries: Sequence[ArenaRow]) -> ArenaRow:
    """The dense model, as the row that asked it most has it."""
    source = max(entries, key=lambda e: e.runs[0].value(DENSE, ZERO_SHOT) is not None)
    return ArenaRow(DENSE, DENSE, source.runs)


def _ratios(entries: Sequence[ArenaRow], best: ArenaRow) -> dict[str, Ratio]:
    found = {}
    for entry in entries:
        seeds = [seed for seed in best.seeds if seed in entry.seeds]
        theirs, ours = (e.losses(seeds) if seeds else None for e in (entry, best))
        if entry is best or theirs is None or ours is None:
            continue
        if np.isfinite(theirs).all() and np.isfinite(ours).all():
            found[entry.row] = perplexity_ratio(theirs, ours)
    return found


def _cost(run: RunRecord, name: str) -> float:
    if name == "tokens":
        return float(run.content["repair"].get("tokens", 0))
    if name == "trained":
        return float(run.content["cost"].get("repair", {}).get("trained_parameters", 0))
    return run.seconds("repair") if name == "seconds" else run.peak_bytes("repair")


def _amount(budget: str, run: RunRecord, entries: Sequence[ArenaRow]) -> float:
    """What every row is given: by the config, or, of parameters, what low-rank rows train."""
    arena = run.config["arena"]
    if budget == "seconds":
        return float(arena["seconds"])
    low_rank = [entry for entry in entries if entry.row in LOW_RANK]
    if budget == "tokens":
        windows = arena["steps"] * arena["batch_size"] * arena["accumulate"]
        return float(windows * run.devices * _window(low_rank, run))
    if not low_rank:
        raise ValueError(
            "budget=trainable is what low-rank rows train, and none of them is here; give the "
            f"folder of a run with arena={LOW_RANK[-1]} or the like"
        )
    return statistics.median(entry.cost("trained") for entry in low_rank)


def _window(low_rank: Sequence[ArenaRow], run: RunRecord) -> float:
    """Tokens of a training window: as a low-rank row counted them, else those of a test window."""
    for entry in low_rank:
        repair = entry.runs[0].content["repair"]
        windows = repair.get("steps", 0) * repair.get("windows_per_step", 0)
        if windows:
            return float(repair["tokens"] / windows)
    return float(run.content["protocol"]["seqlen"])

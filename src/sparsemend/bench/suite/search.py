"""What n trials of a search over ATP's common difference cost, against n runs and their bound.

A run measures the dense model, prunes it and measures the pruned one.  Trials of one process share
the dense measurement and what pruning observes before a weight changes: what enters the first block
and its statistics, or with statistics=dense those of every block.  Where that is a share f of a
run, n trials cost

    n - (n - 1) f   runs

at least.  Operations are counted, and say whatever the machine does whether the bound is met.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.bench.choices import compose_section, instance
from sparsemend.bench.suite.base import (
    UNSTRUCTURED,
    BenchRow,
    Column,
    Section,
    Setting,
    Suite,
    build_jobs,
    schedule,
)
from sparsemend.blocks.walk import Calibration
from sparsemend.data.base import Examples
from sparsemend.instruments import time_and_peak, work_counts
from sparsemend.prune import dense_statistics, observe_first
from sparsemend.pruner.base import Pruner
from sparsemend.run.memory import Memory
from sparsemend.run.prune import PruningRules
from sparsemend.sparsity_schedule.base import SparsitySchedule
from sparsemend.sparsity_schedule.rates.progression import bound
from sparsemend.terminal import track
from sparsemend.training.batches import mean_loss

log = logging.getLogger(__name__)

APART = "apart"
WAYS = {APART: "exact", "shared": "exact", "shared, dense": "dense"}  # row: statistics of trials


def _figure(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{row[name]:.3f}"


COLUMNS = (
    Column("GFLOP", lambda row: f"{row['operations'] / 1e9:,.1f}"),
    Column("runs", _figure("runs")),
    Column("shared f", _figure("shared")),
    Column("bound", _figure("bound")),
)


@dataclass(kw_only=True)
class SearchCost(Suite):
    """Counts and times `trials` trials of each pruner of `jobs`: n runs apart, and sharing."""

    jobs: Mapping[str, Mapping[str, Any]]
    only: list[str] | None
    trials: int
    samples: int
    windows: int
    seqlen: int

    def sections(self, setting: Setting) -> Iterator[Section]:
        jobs = build_jobs(self.jobs, self.only, setting.search)
        steps = [number / self.trials for number in range(self.trials)]
        widest = min(bound(setting.sparsity, setting.shape.blocks), 1.0)
        schedules = atp_schedules([step * widest for step in steps], setting.search)
        for label, job in jobs.items():
            if not isinstance(job, Pruner):
                raise ValueError(
                    f"suite.jobs.{label} is not a pruner, whose rates a search could choose; give "
                    "{pruner: MEMBER}"
                )
            search = Trials(
                dense=setting.model(self.seqlen),
                calibration=Calibration((setting.tokens(self.samples, self.seqlen),)),
                measured=setting.tokens(self.windows, self.seqlen),
                pruner=job,
                schedules=schedules,
                sparsity=setting.sparsity,
            )
            yield self._section(label, setting, search)

    def _section(self, label: str, setting: Setting, search: Trials) -> Section:
        rows = {way: BenchRow(label=way, figures=search.count_operations(way)) for way in WAYS}
        for _, way in track(schedule(list(rows), setting.rounds), label):
            work = partial(search.run, way, search.schedules)
            rows[way].seconds.append(time_and_peak(work, setting.device)[0])
            log.info("%-14s  %.2f s", way, rows[way].seconds[-1])
        title = (
            f"{self.trials} trials with {label}, {self.samples} x {self.seqlen} tokens, measured "
            f"on {self.windows} x {self.seqlen}"
        )
        return Section(title=title, baseline=APART, columns=COLUMNS, rows=list(rows.values()))


def atp_schedules(differences: Sequence[float], search: list[str]) -> list[SparsitySchedule]:
    """ATP at every common difference."""
    choice = {"sparsity_schedule": "atp", "common_difference": 0.0}
    section = compose_section("suite.schedule", choice, search)
    built = []
    for difference in differences:
        section.common_difference = difference
        schedule_here = instance("suite.schedule", section)
        assert isinstance(schedule_here, SparsitySchedule)
        built.append(schedule_here)
    return built


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The trials of one search; its dense model stays as it is."""

    dense: PreTrainedModel
    calibration: Calibration
    measured: Tensor
    pruner: Pruner
    schedules: Sequence[SparsitySchedule]
    sparsity: float

    def run(self, way: str, schedules: Sequence[SparsitySchedule]) -> None:
        """One trial per schedule, each as a run of its own process or sharing with the others."""
        memory = Memory(way != APART)
        parts = {"search": uuid4().hex}  # nothing of an earlier search is this one's
        for each in schedules:
            memory.once("dense loss", parts, lambda: self.loss(self.dense))
            rules = PruningRules(
                pruner=self.pruner,
                schedule=each,
                sparsity=self.sparsity,
                pattern=UNSTRUCTURED,
                rounding="pruner",
                statistics=WAYS[way],
                true_sequential=False,
            )
            model = copy.deepcopy(self.dense)
            rules(model, self.calibration, memory, lambda: parts)
            self.loss(model)

    def share(self, way: str) -> None:
        """Do by itself what the trials of a way share."""
        self.loss(self.dense)
        observe = dense_statistics if WAYS[way] == "dense" else observe_first
        observe(self.dense, self.calibration, self.pruner)

    def loss(self, model: PreTrainedModel) -> float:
        return mean_loss(model, Examples.of(self.measured), torch.device(model.device), 1)

    def count_operations(self, way: str) -> dict[str, Any]:
        """Operations of all trials; they, and their bound, in runs of the papers' protocol."""
        count, one = len(self.schedules), self.schedules[:1]
        plain, _ = work_counts(lambda: self.run(APART, one))
        run, _ = work_counts(lambda: self.run(way, one))
        shared = 0 if way == APART else work_counts(lambda: self.share(way))[0]
        total, _ = work_counts(lambda: self.run(way, self.schedules))
        return {
            "operations": total,
            "runs": total / plain,
            "shared": shared / run,
            "bound": (count * run - (count - 1) * shared) / plain,
        }

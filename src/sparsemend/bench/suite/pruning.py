"""The cost of pruning and training-free repair, as multiples of the floor.

The floor of a sequential pruner is two passes of the blocks over the calibration tokens: one to
observe, one to propagate.  Every job starts from a fresh model; making it is not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.bench.suite.base import (
    PEAK_MEMORY,
    BenchRow,
    Section,
    Setting,
    Suite,
    build_jobs,
    job_on_fresh_model,
    schedule,
)
from sparsemend.blocks.walk import Calibration
from sparsemend.files import write_text
from sparsemend.instruments import time_and_peak
from sparsemend.method.base import RepairMethod
from sparsemend.pruner.base import Pruner
from sparsemend.terminal import track

log = logging.getLogger(__name__)

FLOOR = "two passes"


@dataclass(kw_only=True)
class Pruning(Suite):
    """Times the pruners and training-free methods of `jobs`; a method mends a magnitude start."""

    jobs: Mapping[str, Mapping[str, Any]]
    only: list[str] | None
    samples: int
    seqlen: int
    profile: bool

    def sections(self, setting: Setting) -> Iterator[Section]:
        jobs = build_jobs(self.jobs, self.only, setting.search)
        rows = {label: BenchRow(label=label) for label in (FLOOR, *jobs)}
        self._prepare(setting, None)()  # warm up
        for _, label in track(schedule(list(rows), setting.rounds), "pruning"):
            seconds, peak = time_and_peak(self._prepare(setting, jobs.get(label)), setting.device)
            rows[label].seconds.append(seconds)
            rows[label].figures["peak_bytes"] = max(rows[label].figures.get("peak_bytes", 0), peak)
            log.info("%-12s  %.2f s", label, seconds)
        title = f"{self.samples} x {self.seqlen} tokens"
        yield Section(title=title, baseline=FLOOR, columns=(PEAK_MEMORY,), rows=list(rows.values()))
        if self.profile:
            for label, job in jobs.items():
                path = setting.out / f"profile_{label}.txt"
                write_text(path, profile(self._prepare(setting, job), setting.device))
                log.info("profile of %s: %s", label, path)

    def _prepare(self, setting: Setting, job: Pruner | RepairMethod | None) -> Callable[[], object]:
        """Make a fresh model and return a function that runs `job` (None: the floor) on it."""
        windows = setting.tokens(self.samples, self.seqlen)
        if job is not None:
            return job_on_fresh_model(setting, job, windows)[1]
        model = setting.model(self.seqlen)
        return lambda: two_passes(model, windows)


@torch.no_grad()
def two_passes(model: PreTrainedModel, windows: Tensor) -> None:
    """The floor: every block twice over every sequence."""
    for visit in Calibration((windows,)).walk(model):
        visit.outputs()
    visit.outputs()  # the walk leaves out the last block's second pass; the floor has it


def profile(work: Callable[[], object], device: torch.device) -> str:
    """A table of the operators in which `work` spends its time, from torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        work()
    return str(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)) + "\n"

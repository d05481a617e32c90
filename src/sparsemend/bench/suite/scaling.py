"""How the cost of pruning grows with width, depth, the length of sequences and their number.

An exponent e says that the cost grows as size^e: the least-squares slope of its logarithm over that
of the size.  Operations, bytes and calls are counted, and are the same on every machine; the
exponent of the time is that of the machine too.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from sparsemend.bench.candidate import living
from sparsemend.bench.suite.base import (
    BenchRow,
    Column,
    Section,
    Setting,
    Suite,
    build_jobs,
    job_on_fresh_model,
    schedule,
)
from sparsemend.instruments import peak_bytes, time_and_peak, work_counts
from sparsemend.method.base import RepairMethod
from sparsemend.pruner.base import Pruner
from sparsemend.terminal import track

log = logging.getLogger(__name__)

AXES = ("hidden", "blocks", "seqlen", "samples")
COSTS = ("operations", "bytes", "calls")


@dataclass(frozen=True)
class JobSize:
    """One size of a job: the width and depth of the model, tokens of a sequence, sequences."""

    hidden: int
    blocks: int
    seqlen: int
    samples: int

    def __str__(self) -> str:
        return f"hidden {self.hidden}, {self.blocks} blocks, {self.samples} x {self.seqlen} tokens"


@dataclass(kw_only=True)
class CostsAtSize:
    """The costs of a job at one size."""

    size: int  # along the axis
    counted: dict[str, int]  # by COSTS
    seconds: list[float] = field(default_factory=list)


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """e of cost ~ size^e, by least squares over logarithms; NaN where a cost is 0."""
    if min(costs) <= 0:
        return math.nan
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(x, y).slope


def exponent_cell(cost: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{row['exponents'][cost]:.2f}"


COLUMNS = tuple(Column(f"{cost} ^", exponent_cell(cost)) for cost in ("time", *COSTS))


@dataclass(kw_only=True)
class Scaling(Suite):
    """Counts and times the pruners and training-free methods of `jobs` along every axis.

    hidden, blocks, seqlen, samples: the sizes of an axis; the first is what the others hold it at.
    """

    jobs: Mapping[str, Mapping[str, Any]]
    only: list[str] | None
    hidden: list[int]
    blocks: list[int]
    seqlen: list[int]
    samples: list[int]

    def sections(self, setting: Setting) -> Iterator[Section]:
        jobs = build_jobs(self.jobs, self.only, setting.search)
        for axis in AXES:
            yield self.along(axis, setting, jobs)

    def along(
        self, axis: str, setting: Setting, jobs: Mapping[str, Pruner | RepairMethod]
    ) -> Section:
        """The section of one axis; its seconds are those of the largest size."""
        start = JobSize(self.hidden[0], self.blocks[0], self.seqlen[0], self.samples[0])
        sizes = {each: replace(start, **{axis: each}) for each in getattr(self, axis)}
        points = {
            label: {
                each: CostsAtSize(size=each, counted=counts(setting, job, size))
                for each, size in sizes.items()
            }
            for label, job in jobs.items()
        }
        turns = [f"{label} {each}" for label in jobs for each in sizes]
        for _, turn in track(schedule(turns, setting.rounds), axis):
            label, _, each = turn.rpartition(" ")
            _, work = prepare_job(setting, jobs[label], sizes[int(each)])
            points[label][int(each)].seconds.append(time_and_peak(work, setting.device)[0])
            log.info("%-12s %s %s", label, axis, each)
        return Section(
            title=f"exponents over {axis} {', '.join(map(str, sizes))}, from {start}",
            baseline=next(iter(jobs)),
            columns=COLUMNS,
            rows=[_row(label, list(by_size.values())) for label, by_size in points.items()],
        )


def prepare_job(
    setting: Setting, job: Pruner | RepairMethod, size: JobSize
) -> tuple[PreTrainedModel, Callable[[], object]]:
    """A fresh model of that size, and a function that runs the job on it."""
    shape = setting.shape.at_size(hidden=size.hidden, blocks=size.blocks)
    sized = replace(setting, shape=shape)
    return job_on_fresh_model(sized, job, sized.tokens(size.samples, size.seqlen))


def counts(setting: Setting, job: Pruner | RepairMethod, size: JobSize) -> dict[str, int]:
    """The operations, operator calls and peak bytes besides the model's own of a job."""
    _, work = prepare_job(setting, job, size)
    operations, calls = work_counts(work)
    model, work = prepare_job(setting, job, size)
    held = living(model)
    resident = sum(tensor.nbytes for tensor in held)
    return {
        "operations": operations,
        "bytes": peak_bytes(work, held, setting.device) - resident,
        "calls": calls,
    }


def _row(label: str, points: Sequence[CostsAtSize]) -> BenchRow:
    sizes = [point.size for point in points]
    exponents = {cost: exponent(sizes, [point.counted[cost] for point in points]) for cost in COSTS}
    exponents["time"] = exponent(sizes, [statistics.median(point.seconds) for point in points])
    return BenchRow(
        label=label,
        seconds=points[-1].seconds,
        figures={"exponents": exponents, "points": [vars(point) for point in points]},
    )

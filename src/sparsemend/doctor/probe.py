"""Seconds of a run's stages, from real runs of a block or two on the device at hand.

The model has the run's own shape and random weights; windows are as long as the run's.  Three kinds
of run, after one that warms up, differ in one number each, and in each every stage is timed:

    base    one block,   n of what the stage repeats (calibration windows, test windows, steps)
    deeper  two blocks,  n
    longer  one block,  2n

A stage takes a + L k + N (u + L v) with L blocks and N repetitions.  Where it calibrates, u is the
embedding of a window and left out; where it measures or trains, k is left out, since a block costs
little beside its steps.  So three times are enough.  n is doubled until the longer run takes
seconds more, and each time is the smaller of two: what is carried on is a difference, many times
over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.locations import is_local
from sparsemend.cost import Cost, Stages
from sparsemend.doctor.blank_job import (
    around_fits,
    blank_job,
    hydra_of_a_job,
    quiet,
    skeleton_of,
)
from sparsemend.doctor.estimate import least_windows
from sparsemend.doctor.ledger import Ledger
from sparsemend.doctor.peaks import FITTING, REPAIR, START, Extent
from sparsemend.doctor.skeleton import BlankWindows, FewBlocks
from sparsemend.preflight.data import data_sources
from sparsemend.run.debug import cut_short
from sparsemend.run.job import build_parts
from sparsemend.run.run import stages

STEPS = 2  # of a fit; twice as many of the longer run
ENOUGH = 2.0  # seconds that as many repetitions again take, against the noise of a machine
ROUNDS = ("update_interval", "rounds")  # keys of methods whose steps differ from one another


@dataclass(frozen=True)
class Amount:
    """What a timed run repeats."""

    blocks: int
    windows: int
    steps: int
    tested: int

    def twice(self) -> Amount:
        """As many repetitions again."""
        return Amount(self.blocks, 2 * self.windows, 2 * self.steps, 2 * self.tested)

    def covers(self, other: Amount) -> bool:
        """Whether it repeats everything as often as `other`."""
        most = Amount(
            self.blocks,
            max(self.windows, other.windows),
            max(self.steps, other.steps),
            max(self.tested, other.tested),
        )
        return self == most


@dataclass(frozen=True)
class Times:
    """Seconds of a stage in the three runs."""

    base: float
    deeper: float
    longer: float

    @property
    def of_a_block(self) -> float:
        return max(0.0, self.deeper - self.base)

    @property
    def of_more(self) -> float:
        """What as many repetitions again take with one block."""
        return max(0.0, self.longer - self.base)

    def calibrating(self, blocks: int, times: float) -> float:
        """Seconds with `times` as many repetitions, of which all the work is in blocks."""
        return self.base + (blocks - 1) * self.of_a_block + (times - 1) * self.of_more * blocks

    def repeating(self, blocks: int, times: float) -> float:
        """Seconds with `times` as many repetitions, which a block takes no time beside."""
        return self.base + (times - 1) * self.of_more + times * (blocks - 1) * self.of_a_block

    def repetition(self, blocks: int) -> float:
        """Seconds of the repetitions of the first run, with so many blocks."""
        return self.of_more + (blocks - 1) * self.of_a_block


def probe_seconds(cfg: DictConfig) -> dict[str, float]:
    """Stage -> seconds of the run of `cfg`; a stage that cannot be timed so is left out."""
    cfg = cut_short(cfg)
    samples, tested = int(cfg.data.calibration_samples), tested_windows(cfg)
    steps = int(cfg.method.get("max_steps", STEPS))
    few = Amount(1, min(samples, least_windows(cfg)), STEPS, int(cfg.hardware.evaluation_batch))
    _, depth = timed_run(cfg, few)  # what is imported and set up once
    base, longer = _seconds(cfg, few), _seconds(cfg, few.twice())
    whole_run = Amount(1, samples, steps, tested or 0)
    while sum(longer.values()) - sum(base.values()) < ENOUGH and not few.covers(whole_run):
        few, base, longer = few.twice(), longer, _seconds(cfg, few.twice().twice())
    runs = base, _seconds(cfg, replace(few, blocks=2)), longer
    whole: dict[str, float] = {}
    window = 0.0  # seconds of measuring one
    for stage in base:
        if not all(stage in run for run in runs):
            continue
        times = Times(*(run[stage] for run in runs))
        if stage.startswith("evaluate"):
            window = times.repetition(depth) / few.tested
            if tested is not None:
                whole[stage] = times.repeating(depth, tested / few.tested)
        elif stage == FITTING and not any(key in cfg.method for key in ROUNDS):
            measured = validations(cfg) * int(cfg.method.validation_windows)
            whole[stage] = times.repeating(depth, steps / few.steps) + measured * window
        elif stage in ("prune", REPAIR):
            whole[stage] = times.calibrating(depth, samples / few.windows)
        elif stage in (START, "export"):
            whole[stage] = times.calibrating(depth, 1)
    return whole


def _seconds(cfg: DictConfig, amount: Amount) -> dict[str, float]:
    """Stage -> the smaller of the seconds of two runs."""
    first, second = (timed_run(cfg, amount)[0] for _ in range(2))
    return {stage: min(first[stage], second[stage]) for stage in first if stage in second}


def validations(cfg: DictConfig) -> int:
    """How often a fit measures the validation windows."""
    every = int(cfg.method.get("validate_every", 0))
    return int(cfg.method.max_steps) // every if every else 0


def tested_windows(cfg: DictConfig) -> int | None:
    """The test windows that are measured; None where they are to come from the hub."""
    asked = OmegaConf.select(cfg, "evaluation.perplexity.windows")
    if asked is not None:
        return int(asked)
    places = [str(source.get("path") or ".") for _, source in data_sources(cfg)]
    if not all(map(is_local, places)):
        return None
    parts = build_parts(cfg)
    return len(parts.data.test(parts.model.tokenizer()))


def timed_run(cfg: DictConfig, amount: Amount) -> tuple[dict[str, float], int]:
    """Seconds by stage of a real run, and the blocks of the whole model."""
    cfg = _brief(cfg, amount)
    with TemporaryDirectory() as folder, quiet(), hydra_of_a_job():
        out = Path(folder)
        model = FewBlocks(skeleton_of(cfg), amount.blocks, Ledger())
        extent = Extent(amount.blocks, amount.windows)
        job = blank_job(cfg, out, model, extent, Stages(torch.device("cpu")), pretended=False)
        assert isinstance(job.parts.data, BlankWindows)
        data = replace(job.parts.data, tested=amount.tested)
        clock = Clock(job.device)
        job = replace(job, parts=replace(job.parts, data=data), stages=clock)
        with around_fits(clock.of_a_fit):
            stages(job)
    return clock.seconds(), model.depth


class Clock(Stages):
    """Seconds by the names of a doctor's stages."""

    fits = 0.0

    @contextmanager
    def of_a_fit(self) -> Iterator[None]:
        """Time a fit of a method that trains."""
        started = perf_counter()
        yield
        self._peak()  # waits for a GPU
        self.fits += perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds; loading is left out, which read no file."""
        return dict(_by_stage(self.costs, self.fits))


def _by_stage(costs: Mapping[str, Cost], fits: float) -> Iterator[tuple[str, float]]:
    for name, cost in costs.items():
        if name == REPAIR and fits:
            yield START, cost.seconds - fits
            yield FITTING, fits
        elif cost.parts:
            yield from ((f"{name}: {part}", of.seconds) for part, of in cost.parts.items())
        elif name != "load":
            yield name, cost.seconds


def _brief(cfg: DictConfig, amount: Amount) -> DictConfig:
    """`cfg` with so many steps, one validation of a batch, and every test window measured."""
    brief = cfg.copy()
    for key in ("max_steps", "validate_every", "checkpoint_every"):
        if key in brief.method:
            brief.method[key] = amount.steps
    if "validation_windows" in brief.method:
        brief.method.validation_windows = 2
    if OmegaConf.select(brief, "evaluation.perplexity") is not None:
        brief.evaluation.perplexity.windows = None
    return brief

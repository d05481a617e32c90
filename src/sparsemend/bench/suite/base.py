"""The contract of every suite: in one setting, sections of rows, each timed round by round.

Everything of a suite alternates in one process: in each round every row runs once, and a row is
compared with the baseline of the same round, so a machine whose speed drifts still gives
comparable numbers.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.bench.choices import build
from sparsemend.bench.shape import Shape
from sparsemend.blocks.walk import Calibration
from sparsemend.data.base import Examples
from sparsemend.method.base import RepairMethod, Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

UNSTRUCTURED = Pattern.parse("unstructured")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model, data and machine that a suite measures with, and the number of rounds."""

    shape: Shape
    sparsity: float
    dtype: torch.dtype
    device: torch.device
    rounds: int
    seed: int
    out: Path
    search: list[str]  # overrides that put the user's own config folders on the search path

    def model(self, positions: int) -> PreTrainedModel:
        """The dense random model, the same at every call."""
        return self.shape.model(
            positions=positions, dtype=self.dtype, device=self.device, seed=self.seed
        )

    def pruned_model(self, positions: int) -> PreTrainedModel:
        """The random model with the smallest weights of every row at zero."""
        model = self.model(positions)
        prune(model, Calibration(()), Magnitude(group="row"), self.allocation(model), UNSTRUCTURED)
        return model

    def allocation(self, model: PreTrainedModel) -> Mapping[str, float]:
        return Uniform().allocate(model, Calibration(()), self.sparsity, UNSTRUCTURED)

    def tokens(self, rows: int, length: int) -> Tensor:
        """Random token windows (rows, length) on the CPU."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randint(0, self.shape.vocabulary, (rows, length), generator=generator)

    def bench(self, model: PreTrainedModel, windows: Tensor, pruner: Pruner) -> Workbench:
        """The workbench of a method on `model`: random windows, no Trainer."""
        return Workbench(
            calibration=Calibration((windows,), device=self.device),
            train=Examples.of(windows),
            validation=Examples.of(windows[:0]),
            pruner=pruner,
            allocation=self.allocation(model),
            sparsity=self.sparsity,
            pattern=UNSTRUCTURED,
            load_dense=lambda: self.model(windows.shape[1]),
            make_trainer=_no_trainer,
            device=self.device,
            out=self.out,
            seed=self.seed,
        )


def _no_trainer(*, callbacks: list[Callback], **settings: object) -> Trainer:
    raise RuntimeError("a bench attaches and steps a method itself; it has no Trainer")


@dataclass(kw_only=True)
class BenchRow:
    """The measurements of a row: raw seconds by round, and figures that do not vary by round."""

    label: str
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None  # why there are no (more) measurements


@dataclass(frozen=True)
class Column:
    """A column of the table: how the figures of a row are shown."""

    heading: str
    shown: Callable[[Mapping[str, Any]], str]


@dataclass(kw_only=True)
class Section:
    """The rows of one setting; ratios are against the baseline row of the same round."""

    title: str
    baseline: str
    columns: Sequence[Column]
    rows: list[BenchRow]

    def ratios(self, row: BenchRow) -> list[float]:
        """Seconds over the baseline's, round by round; [] where the baseline was refused."""
        base = next(other for other in self.rows if other.label == self.baseline)
        return [elapsed / floor for elapsed, floor in zip(row.seconds, base.seconds, strict=False)]

    def content(self) -> dict[str, Any]:
        """Everything measured, as JSON values."""
        return {
            "title": self.title,
            "baseline": self.baseline,
            "rows": [self._row_content(row) for row in self.rows],
        }

    def _row_content(self, row: BenchRow) -> dict[str, Any]:
        ratios = self.ratios(row)
        return {
            "label": row.label,
            "seconds": row.seconds,
            "median_seconds": statistics.median(row.seconds) if row.seconds else None,
            "ratios": ratios,
            "median_ratio": statistics.median(ratios) if ratios else None,
            "ratio_range": [min(ratios), max(ratios)] if ratios else None,
            **row.figures,
            "refused": row.refused,
        }


def build_jobs(
    jobs: Mapping[str, Mapping[str, Any]], only: Sequence[str] | None, search: list[str]
) -> dict[str, Pruner | RepairMethod]:
    """The pruners and training-free methods of a suite by label.

    Raises ValueError on a method that trains.
    """
    built = {label: build(f"suite.jobs.{label}", jobs[label], search) for label in only or jobs}
    for label, job in built.items():
        if isinstance(job, TrainedRepair):
            raise ValueError(f"suite.jobs.{label} trains; measure it with suite=methods")
    return built


def job_on_fresh_model(
    setting: Setting, job: Pruner | RepairMethod, windows: Tensor
) -> tuple[PreTrainedModel, Callable[[], object]]:
    """A model, and a function that prunes it, or mends it after a magnitude start."""
    length = windows.shape[1]
    if isinstance(job, RepairMethod):
        repaired = setting.pruned_model(length)
        wanda = build("suite", {"pruner": "wanda"}, setting.search)  # what the method starts at
        return repaired, lambda: job.repair(repaired, setting.bench(repaired, windows, wanda))
    model = setting.model(length)
    calibration, allocation = Calibration((windows,)), setting.allocation(model)
    return model, lambda: prune(model, calibration, job, allocation, UNSTRUCTURED)


class Suite(ABC):
    """Measures one kind of work."""

    @abstractmethod
    def sections(self, setting: Setting) -> Iterator[Section]:
        """Yield each section when it is complete."""


def schedule(labels: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """(round, label) in the order of measuring; every other round runs backwards.

    A steady drift within a round then favours no place in the order.
    """
    return [
        (index, label)
        for index in range(rounds)
        for label in (labels if index % 2 == 0 else labels[::-1])
    ]


def peak_memory(figures: Mapping[str, Any]) -> str:
    return f"{figures['peak_bytes'] / 2**20:,.0f}"


PEAK_MEMORY = Column("peak MiB", peak_memory)

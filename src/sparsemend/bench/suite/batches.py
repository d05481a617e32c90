"""What padding costs: steps on examples of many lengths, in batches of three kinds.

    whole      every batch as long as a window
    trimmed    as long as its longest example, which is what training does
    grouped    and of examples of like length (method.group_by_length)

Lengths are drawn from a log-normal distribution, as those of instructions nearly are: many short
ones and a long tail.  All kinds read every example once, so that they read as many real tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsemend.bench.candidate import Candidate
from sparsemend.bench.choices import build
from sparsemend.bench.suite.base import BenchRow, Column, Section, Setting, Suite, schedule
from sparsemend.data.base import UNLABELLED, Examples, labelled_lengths
from sparsemend.instruments import time_and_peak
from sparsemend.method.trained import TrainedRepair
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.terminal import track
from sparsemend.training.batches import Grouping, Order, SteppedBatches, StepSplit, loader

WHOLE, TRIMMED, GROUPED = "whole", "trimmed", "grouped"


def rate(figures: Mapping[str, Any]) -> str:
    return f"{figures['real_tokens'] / figures['median_seconds']:,.0f}"


def padding(figures: Mapping[str, Any]) -> str:
    return f"{1 - figures['real_tokens'] / figures['tokens']:.0%}"


COLUMNS = (Column("real tokens/s", rate), Column("padding", padding))


@dataclass(kw_only=True)
class Batches(Suite):
    """Steps `method` through `examples` examples, `windows` at a time."""

    method: Mapping[str, Any]
    examples: int
    windows: int
    seqlen: int
    median_length: int
    spread: float

    def sections(self, setting: Setting) -> Iterator[Section]:
        examples = self._examples(setting)
        candidate = self._candidate(setting)
        rows, batches = {}, {}
        for label in (WHOLE, TRIMMED, GROUPED):
            batches[label] = list(self._batches(examples, setting, label))
            computed = sum(tokens.numel() for tokens, _ in batches[label])
            real = sum(labelled_lengths(examples.labels))
            rows[label] = BenchRow(label=label, figures={"tokens": computed, "real_tokens": real})
        candidate.step(*batches[TRIMMED][0])
        for _, label in track(schedule(list(rows), setting.rounds), "rounds"):
            work = partial(_step_through, candidate, batches[label])
            rows[label].seconds.append(time_and_peak(work, setting.device)[0])
        yield Section(
            title=f"{self.examples} examples of {self.median_length} tokens (median), windows of "
            f"{self.seqlen}, {self.windows} a step",
            baseline=WHOLE,
            columns=COLUMNS,
            rows=list(rows.values()),
        )

    def _examples(self, setting: Setting) -> Examples:
        """Random tokens, labelled up to a random length of 2 to seqlen."""
        generator = torch.Generator().manual_seed(setting.seed)
        normal = torch.randn(self.examples, generator=generator)
        lengths = (self.median_length * (self.spread * normal).exp()).round()
        lengths = lengths.clamp(2, self.seqlen).long()
        tokens = setting.tokens(self.examples, self.seqlen)
        beyond = torch.arange(self.seqlen) >= lengths.unsqueeze(1)
        return Examples(tokens, tokens.masked_fill(beyond, UNLABELLED))

    def _batches(
        self, examples: Examples, setting: Setting, kind: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, as a fit reads them."""
        grouping = Grouping(labelled_lengths(examples.labels), self.windows)
        order = Order(
            len(examples), seed=setting.seed, grouping=grouping if kind == GROUPED else None
        )
        split = StepSplit(windows=self.windows, micro_batch=None)
        read = SteppedBatches(order, split, steps=self.examples // self.windows, start=lambda: 0)
        for tokens, labels in loader(examples, read, whole=kind == WHOLE):
            yield tokens.to(setting.device), labels.to(setting.device)

    def _candidate(self, setting: Setting) -> Candidate:
        method = build("suite.method", self.method, setting.search)
        if not isinstance(method, TrainedRepair):
            raise ValueError(f"suite.method is {type(method).__name__}, which trains nothing")
        model = copy.deepcopy(setting.pruned_model(self.seqlen)).requires_grad_(False)
        windows = setting.tokens(self.windows, self.seqlen)
        return Candidate(method, model, setting.bench(model, windows, Magnitude(group="row")))


def _step_through(candidate: Candidate, batches: list[tuple[Tensor, Tensor]]) -> None:
    for tokens, labels in batches:
        candidate.step(tokens, labels)

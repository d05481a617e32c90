"""The cost of one training step of each trained method: seconds, memory, arithmetic.

All methods stand side by side on copies of one random pruned LLaMA and take their steps in turn.
`saved B/weight` is what a method keeps for the backward pass beyond what the frozen model does and
beyond the inputs of its linears, per prunable weight (for a method that trains norms, that is
their inputs).  Peak memory counts one method's model, optimizer and step, as tensor bytes
(`instruments.peak_bytes`); bench.json adds the whole process's, with every other method's model in
it, as process_peak_bytes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.bench.candidate import Candidate, saved_for_backward
from sparsemend.bench.choices import build
from sparsemend.bench.suite.base import (
    PEAK_MEMORY,
    BenchRow,
    Column,
    Section,
    Setting,
    Suite,
    schedule,
)
from sparsemend.instruments import time_and_peak
from sparsemend.method.trained import TrainedRepair
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.terminal import track
from sparsemend.training.logits import next_token_loss

log = logging.getLogger(__name__)

WINDOWS = 8  # random training windows, for methods that look at data when they attach
REFUSALS = (ValueError, torch.OutOfMemoryError)  # noted in the method's row; anything else is a bug


def arithmetic(figures: Mapping[str, Any]) -> str:
    """Forward and backward, in 1e9 operations."""
    billions = [figures[key] / 1e9 for key in ("forward_flops", "backward_flops")]
    return " + ".join(f"{count:,.0f}" if count >= 100 else f"{count:.3g}" for count in billions)


COLUMNS = (
    PEAK_MEMORY,
    Column("saved B/weight", lambda figures: f"{figures['extra_saved_per_weight']:.2f}"),
    Column("GFLOP", arithmetic),
    Column("trained", lambda figures: f"{figures['trained_parameters']:,}"),
)


@dataclass(kw_only=True)
class Methods(Suite):
    """Steps every method of `methods` in turn, against the one labelled `baseline`."""

    methods: Mapping[str, Mapping[str, Any]]
    at_step: Mapping[str, int]
    baseline: str
    only: list[str] | None
    tokens: list[list[int]]
    activation_checkpointing: list[bool]

    def labels(self) -> list[str]:
        """The baseline first, then the others in their order in the yaml."""
        chosen = self.methods if self.only is None else self.only
        return [self.baseline, *(label for label in chosen if label != self.baseline)]

    def sections(self, setting: Setting) -> Iterator[Section]:
        methods = {label: self._method(label, setting) for label in self.labels()}
        base = setting.pruned_model(max(length for _, length in self.tokens))
        base.requires_grad_(False).train()
        rows = {label: BenchRow(label=label) for label in methods}
        candidates: dict[str, Candidate] = {}
        for label in track(list(methods), "attach"):
            with refusals(rows[label]):
                candidates[label] = self._candidate(label, methods[label], base, setting)
        for checkpointed in self.activation_checkpointing:
            for batch, length in self.tokens:
                measured = {
                    label: BenchRow(label=label, refused=row.refused) for label, row in rows.items()
                }
                with checkpointing([base, *(c.model for c in candidates.values())], checkpointed):
                    tokens = setting.tokens(batch, length).to(setting.device)
                    measure(candidates, base, tokens, measured, setting)
                title = f"{batch} x {length} tokens"
                title += ", activation checkpointing" if checkpointed else ""
                yield Section(
                    title=title,
                    baseline=self.baseline,
                    columns=COLUMNS,
                    rows=list(measured.values()),
                )

    def _method(self, label: str, setting: Setting) -> TrainedRepair:
        key = f"suite.methods.{label}"
        method = build(key, self.methods[label], setting.search)
        if not isinstance(method, TrainedRepair):
            raise ValueError(
                f"{key} is {type(method).__name__}, which trains nothing; measure it with "
                "suite=pruning"
            )
        return method

    def _candidate(
        self, label: str, method: TrainedRepair, base: PreTrainedModel, setting: Setting
    ) -> Candidate:
        windows = setting.tokens(WINDOWS, self.tokens[0][1])
        model = copy.deepcopy(base)
        bench = setting.bench(model, windows, Magnitude(group="row"))
        return Candidate(method, model, bench, self.at_step.get(label))


def measure(
    candidates: Mapping[str, Candidate],
    base: PreTrainedModel,
    tokens: Tensor,
    rows: Mapping[str, BenchRow],
    setting: Setting,
) -> None:
    """Fill `rows`: figures of every candidate first, which warm it up, then the timed rounds."""
    frozen = saved_for_backward(base, lambda: next_token_loss(base, tokens, tokens))
    for label in track(list(candidates), "figures"):
        with refusals(rows[label]):
            rows[label].figures = candidates[label].figures(tokens, frozen_saved=frozen)
            log.info("memory and arithmetic of %s measured", label)
        candidates[label].release()
    for index, label in track(schedule(list(candidates), setting.rounds), "rounds"):
        candidate, row = candidates[label], rows[label]
        if row.refused is not None:
            continue
        with refusals(row):
            seconds, peak = time_and_peak(partial(candidate.step, tokens), setting.device)
            row.seconds.append(seconds)
            row.figures["process_peak_bytes"] = max(peak, row.figures.get("process_peak_bytes", 0))
            log.info("round %d/%d  %s  %.3f s", index + 1, setting.rounds, label, seconds)
        candidate.release()


@contextmanager
def refusals(row: BenchRow) -> Iterator[None]:
    """Store the reason in `row` where a method refuses this model or runs out of memory."""
    try:
        yield
        return
    except REFUSALS as error:
        row.refused = str(error).splitlines()[0]
        log.warning("%s: %s", row.label, row.refused)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # after the error, whose traceback holds tensors


@contextmanager
def checkpointing(models: Sequence[PreTrainedModel], wanted: bool) -> Iterator[None]:
    """Recompute block activations in backward, as training does, until the with block ends."""
    for model in models if wanted else ():
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        for model in models if wanted else ():
            model.activation_checkpointing_disable()

"""The facts of a measured state of a run, by which a statement names its sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemend.config.values import leaves
from sparsemend.names import METRIC, TASK_METRIC, WINDOW_LOSSES, weights_of
from sparsemend.result.format import LARGE
from sparsemend.result.protocol import measured_text
from sparsemend.result.runs import Row, RunRecord
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.claims.statements import PER_WINDOW

NO_ROW = "none"
UNSAID = (None, False, "auto")
# of hardware, on which costs depend; what is left to the machine is not named
COST_KEYS = ("devices", "micro_batch", "activation_checkpointing", "offload", "stream", "states")


@dataclass(frozen=True, order=True)
class ComparedAt:
    """What both sides of a comparison have in common beside the seed.

    Its label is `wanda 0.6`, with the data of a repair where they are not the measured text.
    """

    model: str
    text: str  # that is measured
    trained: str  # the data that repairs read, where that is another text; else empty
    pruner: str
    amount: str  # sparsity, or the pattern of an N:M model
    machine: str  # of a cost, which is of a machine; else empty

    @property
    def label(self) -> str:
        """How it is called in a table."""
        trained = f"trained on {self.trained}" if self.trained else ""
        return ", ".join(filter(None, [f"{self.pruner} {self.amount}", trained, self.machine]))


@dataclass(frozen=True)
class MeasuredState:
    """One state of one run: pruned, or repaired."""

    run: RunRecord
    row: Row
    state: str

    def setting(self, measure: str) -> ComparedAt:
        """The setting in which it is compared by a measure."""
        text, data = measured_text(self.run.config["data"]), str(self.run.config["data"]["name"])
        if measure == TASK_METRIC:
            text, data = data, ""
        trained = data if data != text else ""
        machine = "" if measure in PER_WINDOW else self._machine
        return ComparedAt(self.run.model, text, trained, self.row.pruner, self.row.amount, machine)

    @property
    def _machine(self) -> str:
        """What costs depend on beside the work: `cpu, 1 thread, micro_batch 8, Linux-6`."""
        facts, hardware = self.run.result.provenance, self.run.config.get("hardware") or {}
        threads = f"{facts.threads} thread{'s' * (facts.threads != 1)}"
        named = {key: hardware[key] for key in COST_KEYS if hardware.get(key) not in UNSAID}
        parts = [f"{key} {value}" for key, value in named.items()]
        return ", ".join([str(facts.device), threads, *parts, facts.platform])

    def meets(self, conditions: Mapping[str, Any]) -> bool:
        """Whether every condition is a fact: row, method, schedule, variant, task, a dotted key."""
        facts = self._facts()
        return all(_same(facts.get(key, _NOTHING), value) for key, value in conditions.items())

    def _facts(self) -> dict[str, Any]:
        arena = self.run.config.get("arena") or {}
        repaired = self.state == "repaired"
        made_by = {k: v for k, v in self.run.config.items() if repaired or k != "method"}
        return {
            **dict(leaves(made_by)),
            "row": arena.get("row") if repaired else NO_ROW,
            "method": self.row.method,
            "schedule": self.row.schedule,
            "variant": self.row.variant,
            "task": self._has_task,
        }

    def value(self, measure: str) -> float | None:
        """A measure as a number: a perplexity, seconds, bytes; None where there is none."""
        if measure == "step_seconds":
            return self.run.result.repair.diagnostics.get("step_seconds")
        if measure == "peak_bytes":
            return self.run.peak_bytes("repair") or None
        return self.run.value(self.state, measure)

    def has_collapsed(self, measure: str) -> bool:
        """Whether its perplexity is not finite or at least LARGE, or its training ended in NaN."""
        if measure not in PER_WINDOW:
            return False
        if not self.run.result.finished:
            return True  # of `ClaimCells.diverged`
        value = self.value(measure)
        return self.was_measured(measure) if value is None else value >= LARGE

    def was_measured(self, measure: str) -> bool:
        """Whether the run measured it, be the number finite or not."""
        if not self.run.result.finished and measure in PER_WINDOW:
            return measure != TASK_METRIC or self._has_task
        if measure in PER_WINDOW:
            return measure in self.run.result.metrics.get(self.state, {})
        return self.value(measure) is not None

    @property
    def _has_task(self) -> bool:
        return any(TASK_METRIC in metrics for metrics in self.run.result.metrics.values())

    def logarithms(self, measure: str) -> np.ndarray | None:
        """The logarithm of a measure (W,) by test window, or (1,) where it has one number.

        None where it has none that is finite in every window.
        """
        if not self.run.result.finished:
            return None  # losses that lie there are of an earlier attempt
        if measure in PER_WINDOW:
            losses = read_losses(self.run.folder, self.state, measure)
            if losses is None and self.value(measure) is not None:
                raise ValueError(
                    f"{self.run.folder} has a {measure} and not its {WINDOW_LOSSES}; copy the cell "
                    "whole, or run it again"
                )
            return losses if losses is not None and np.isfinite(losses).all() else None
        value = self.value(measure)
        return None if value is None else np.log(np.array([value]))

    def weights(self, measure: str) -> np.ndarray | None:
        """How much each test window (W,) counts in a measure; None where they count equally."""
        if measure not in PER_WINDOW:
            return None
        return read_losses(self.run.folder, self.state, weights_of(measure))


_NOTHING = object()


def _same(fact: Any, wanted: Any) -> bool:
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return any(_same(fact, one) for one in wanted)
    return bool(fact == wanted)


def measured_states(
    runs: Sequence[RunRecord], diverged: Sequence[RunRecord]
) -> Iterator[MeasuredState]:
    """The pruned and repaired states of runs, and the repaired one of those that diverged."""
    for run in runs:
        for row, state in run.states():
            if state != "dense":
                yield MeasuredState(run, row, state)
    for run in diverged:
        yield MeasuredState(run, run.row, "repaired")


def measured_dense(runs: Sequence[RunRecord], model: str, text: str) -> RunRecord | None:
    """The first run that measured the perplexity of a dense model on a text."""
    there = (run for run in runs if (run.model, measured_text(run.config["data"])) == (model, text))
    return next((run for run in there if run.value("dense", METRIC) is not None), None)

"""The facts of a measured state of a run, by which a statement names its sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemend.config.values import leaves
from sparsemend.names import METRIC, TASK_METRIC, weights_of
from sparsemend.result.protocol import measured_text
from sparsemend.result.runs import Row, RunRecord
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.claims.statements import PER_WINDOW

NO_ROW = "none"


@dataclass(frozen=True, order=True)
class ComparedAt:
    """What both sides of a comparison have in common beside the seed."""

    model: str
    text: str  # that is measured
    trained: str  # the data that repairs read, where that is another text; else empty
    pruner: str
    amount: str  # sparsity, or the pattern of an N:M model

    @property
    def label(self) -> str:
        """`wanda 0.6`, with the data of a repair where they are not the measured text."""
        return f"{self.pruner} {self.amount}" + (
            f", trained on {self.trained}" * bool(self.trained)
        )


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
        return ComparedAt(self.run.model, text, trained, self.row.pruner, self.row.amount)

    def meets(self, conditions: Mapping[str, Any]) -> bool:
        """Whether every condition is a fact: row, method, schedule, task, or a dotted key."""
        facts = self._facts()
        return all(
            _same(facts.get(key, _NOTHING), value)
            if key in facts
            else _same(dict(leaves(self.run.config)).get(key, _NOTHING), value)
            for key, value in conditions.items()
        )

    def _facts(self) -> dict[str, Any]:
        arena = self.run.config.get("arena") or {}
        repaired = self.state == "repaired"
        return {
            "row": arena.get("row") if repaired else NO_ROW,
            "method": self.row.method,
            "schedule": self.row.schedule,
            "task": self.run.value(self.state, TASK_METRIC) is not None,
        }

    def value(self, measure: str) -> float | None:
        """A measure as a number: a perplexity, seconds, bytes; None where there is none."""
        if measure == "step_seconds":
            steps = self.run.result.repair.diagnostics.get("steps")
            return self.run.seconds("repair") / steps if steps else None
        if measure == "peak_bytes":
            return self.run.peak_bytes("repair") or None
        return self.run.value(self.state, measure)

    def logarithms(self, measure: str) -> np.ndarray | None:
        """The logarithm of a measure (W,) by test window, or (1,) where it has one number."""
        if measure in PER_WINDOW:
            return read_losses(self.run.folder, self.state, measure)
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


def measured_states(runs: Sequence[RunRecord]) -> Iterator[MeasuredState]:
    """The pruned and repaired states of runs."""
    for run in runs:
        for row, state in run.states():
            if state != "dense":
                yield MeasuredState(run, row, state)


def dense_perplexity(runs: Sequence[RunRecord], text: str) -> float | None:
    """Perplexity of the dense model on a text, of the first run that measured it."""
    values = (r.value("dense", METRIC) for r in runs if measured_text(r.config["data"]) == text)
    return next((value for value in values if value is not None), None)

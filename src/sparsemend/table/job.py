"""A job of an experiment, and which published numbers it repeats.

It repeats a number when it has the number's model, pruner, schedule, method, amount and variant,
measures its metric, and does so on windows of the published length.  Unrepaired and dense models
come with any job that prunes alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from sparsemend.config.members import member_yaml
from sparsemend.result.runs import WIKITEXT
from sparsemend.table.measurement import AVERAGE, AVERAGED, PERPLEXITY, measurement_of, suites
from sparsemend.table.published import UNKNOWN, Published

TEXTS = (WIKITEXT, "wikitext")  # a source that only says wikitext is repeated on WikiText-2
CONTEXT = "model.context_length"
DIFFERENCE = "sparsity_schedule.common_difference"
STEPS = "method.max_steps"
SEQLEN = "data.seqlen"  # of training windows; None where it is the context
SAMPLES = "data.calibration_samples"
SUITE = "evaluation.zero_shot.suite"


@dataclass(frozen=True)
class Job:
    """One job of an experiment: every group and key that a table may name."""

    experiment: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]

    @cached_property
    def schedule(self) -> str:
        """The allocation by name; a progression without slope is uniform."""
        difference = self.values.get(DIFFERENCE)
        flat = difference is not None and float(difference) == 0
        return "uniform" if flat else str(self.values["sparsity_schedule"])

    @cached_property
    def amount(self) -> tuple[float, str]:
        """Sparsity and pattern."""
        return float(self.values["sparsity"]), str(self.values["pattern"])

    def prunes(self, cell: Published) -> bool:
        """Whether the job's pruned model is that of the cell."""
        sparsity, pattern = self.amount
        return (
            cell.sparsity != UNKNOWN
            and cell.pruner in (self.values["pruner"], UNKNOWN)
            and cell.schedule in (self.schedule, UNKNOWN)
            and pattern == ("unstructured" if cell.pattern == UNKNOWN else cell.pattern)
            and abs(sparsity - float(cell.sparsity)) < 1e-9
        )

    def measures(self, cell: Published) -> bool:
        """Whether the job measures the cell's metric, by the published protocol."""
        measurement = measurement_of(cell)
        if measurement is None or measurement.evaluation not in self.values["evaluation"]:
            return False
        if cell.dataset == AVERAGE:
            return bool(self.values[SUITE] == AVERAGED[cell.paper])
        if measurement.evaluation != PERPLEXITY:
            same = cell.dataset in suites()[self.values[SUITE]]
        else:
            text = tested_text(self.values["data"])
            same = cell.dataset == text or (text == WIKITEXT and cell.dataset in TEXTS)
        return same and cell.seqlen in (UNKNOWN, str(self.values[CONTEXT]))

    def covers(self, cell: Published) -> bool:
        """Whether the job repeats the cell."""
        if self.values["model"] != cell.model:
            return False
        if cell.dense:
            return self.measures(cell)
        plain = cell.method == "none" and cell.variant == UNKNOWN
        same = (self.values["method"], self.values["variant"]) == (cell.method, cell.variant)
        return (plain or same) and self.prunes(cell) and self.measures(cell)


@cache
def tested_text(data: str) -> str:
    """The text that perplexity/test reads with a member of `data`, which may hold another one."""
    source = member_yaml("data", data)
    while isinstance(source.get("text"), Mapping):
        source = source["text"]
    return str(source.get("test_on", source["name"]))

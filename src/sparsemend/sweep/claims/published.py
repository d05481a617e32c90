"""The paper's own figures beside a statement's: ratios of two cells, or single numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemend.sweep.claims.facts import ComparedAt
from sparsemend.sweep.claims.statements import Statement
from sparsemend.table.published import UNKNOWN, Published, find_cell, published_numbers

PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class PublishedRatio:
    """Two published cells of one model and protocol, as a ratio."""

    ours: Published
    rival: Published

    @property
    def ratio(self) -> float:
        return float(self.ours.value) / float(self.rival.value)

    @property
    def text(self) -> str:
        """`x 0.119 (dsnot/table1, llama_7b: 66.70 / 5.6e2)`"""
        figures = f"{self.ours.model}: {self.ours.value} / {self.rival.value}"
        unstated = "; its pruner is not stated" * (self.ours.pruner == UNKNOWN)
        ratio = f"{self.ratio:.3f}" if self.ratio >= 0.01 else f"{self.ratio:.1e}"
        return f"x {ratio} ({self.ours.title}, {figures}{unstated})"


def published_ratio(statement: Statement, setting: ComparedAt) -> PublishedRatio | None:
    """The first pair of published cells that a statement may stand beside in a setting.

    Both are perplexities of one table, model, text, pruner and amount, of ours at least where its
    pruner is stated; None where no table of `statement.beside` has such a pair.
    """
    for title in statement.beside:
        cells = [c for c in _perplexities(title) if _of(c, setting)]
        for ours in (cell for cell in cells if _meets(cell, statement.ours)):
            for rival in (cell for cell in cells if _meets(cell, statement.rival)):
                if (ours.model, ours.dataset) == (rival.model, rival.dataset):
                    return PublishedRatio(ours, rival)
    return None


def published_lines(statement: Statement) -> list[str]:
    """A line per single published number of a statement, with its source."""
    return [_line(find_cell(identity)) for identity in statement.published]


def _perplexities(title: str) -> Sequence[Published]:
    return [
        cell
        for cell in published_numbers()
        if cell.title == title and cell.metric == PERPLEXITY and cell.value != UNKNOWN
    ]


def _of(cell: Published, setting: ComparedAt) -> bool:
    if cell.pattern in (UNKNOWN, "unstructured"):
        amount = UNKNOWN if cell.sparsity == UNKNOWN else f"{float(cell.sparsity):g}"
    else:
        amount = cell.pattern
    return cell.pruner in (setting.pruner, UNKNOWN) and amount == setting.amount


def _meets(cell: Published, conditions: Mapping[str, Any]) -> bool:
    """Whether a published cell is of a side; a row of the arena is the method of its name."""
    facts = {"row": cell.method, "method": cell.method, "schedule": cell.schedule}
    named = {key: value for key, value in conditions.items() if key in facts}
    return bool(named) and all(facts[key] == value for key, value in named.items())


def _line(cell: Published) -> str:
    amount = "" if cell.sparsity == UNKNOWN else f" at {cell.sparsity}"
    pruner = "" if cell.pruner == UNKNOWN else f", {cell.pruner}"
    variant = "" if cell.variant == UNKNOWN else f" ({cell.variant})"
    mark = "" if cell.mark == UNKNOWN else f"; {cell.mark}"
    what = cell.metric.replace("_", " ")
    return f"{what}{variant} {cell.value} of {cell.model}{amount}{pruner}: {cell.source}{mark}"

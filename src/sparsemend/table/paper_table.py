"""Show results in the shape of a paper's table: rows of methods, columns of models.

Each cell holds our number (`ours`) beside the published one (`theirs`).  Ours is the mean over
seeds with the sample deviation (n - 1); every run of one row must agree in everything but the seed,
so runs that differ in a knob become rows of their own, told apart by it.  A published value is
shown with its source; a difference is only taken where model and protocol are the published ones.
Where a table is repeated on another model (the embedded one, say), the published column is of one
reference model and carries no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemend.names import HARNESS, METRIC
from sparsemend.result.protocol import Protocol
from sparsemend.result.runs import DENSE, Row, RunRecord
from sparsemend.table.beside import agrees, metric_of, published_cells, row_of
from sparsemend.table.grouping import Ours, group_states
from sparsemend.table.protocols import check_metric, protocols, with_metric
from sparsemend.table.published import UNKNOWN, Published, published_numbers


@dataclass(frozen=True)
class Line:
    """One row of one model: our number, the published one, and whether the two are comparable."""

    model: str
    protocol: Protocol
    row: Row
    settings: str
    ours: Ours
    theirs: Published | None
    comparable: bool
    perplexity: float | None  # of the test text; None where no run measured a finite one

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        if self.theirs is None or not self.comparable or self.theirs.number is None:
            return None
        return self.ours.mean - self.theirs.number


@dataclass(frozen=True)
class Change:
    """One row minus another, where a difference was published ("atp minus uniform").

    ours: None where no perplexity says which setting of a row to take; selected: one was taken.
    """

    model: str
    ours: float | None
    theirs: Published
    comparable: bool
    selected: bool


@dataclass(frozen=True)
class PaperTable:
    """Everything that one table shows."""

    title: str
    metric: str
    lines: tuple[Line, ...]
    changes: tuple[Change, ...]

    @property
    def protocols(self) -> dict[str, Protocol]:
        """The protocol of every model's column."""
        return {line.model: line.protocol for line in self.lines}

    @property
    def sources(self) -> list[str]:
        """Sources of the published values shown, each once, with their marks."""
        shown = [line.theirs for line in self.lines if line.theirs]
        marks = (f" ({cell.mark})" if cell.mark != UNKNOWN else "" for cell in shown)
        return list(dict.fromkeys(c.source + m for c, m in zip(shown, marks, strict=True)))


def tables(runs: Sequence[RunRecord], metric: str) -> list[PaperTable]:
    """One table per `name` of the runs; raises ValueError where two protocols would mix."""
    check_metric(runs, metric)
    runs = with_metric(runs, metric)
    names = dict.fromkeys(run.name for run in runs)
    return [table(name, [run for run in runs if run.name == name], metric) for name in names]


def table(title: str, runs: Sequence[RunRecord], metric: str) -> PaperTable:
    """The table of some runs; `title` says which published table stands beside it."""
    measured = protocols(runs, metric)
    theirs = published_cells(title, metric, measured)
    lines = []
    for group in group_states((row, state, run) for run in runs for row, state in run.states()):
        ours = group.measurement(metric)
        if ours is not None:
            settings = ", ".join(f"{key}={value}" for key, value in group.settings.items())
            beside = theirs.of(group.model, group.row)
            protocol = measured[group.model]
            perplexity = group.metric(METRIC)
            lines.append(
                Line(group.model, protocol, group.row, settings, ours, *beside, perplexity)
            )
    if not lines:
        raise ValueError(f"{metric} of {title} is not finite in any run; there is nothing to show")
    lines.sort(key=_order)
    return PaperTable(title, metric, tuple(lines), tuple(changes(title, metric, lines)))


def changes(title: str, metric: str, lines: Sequence[Line]) -> Iterator[Change]:
    """Yield our difference of two rows for each difference that the table publishes, per model.

    Of rows that only a setting tells apart (ATP's common difference) the one of the lowest test
    perplexity counts, whatever the metric: the paper chooses one difference by that text and
    reports both metrics at it.  Differences of accuracies are in percentage points.
    """
    unit = 100 if metric.startswith(HARNESS) else 1
    for cell in published_numbers():
        if cell.title != title or cell.sides is None or metric_of(cell.sides[0]) != metric:
            continue
        rows = [row_of(side) for side in cell.sides]
        for model, protocol in {line.model: line.protocol for line in lines}.items():
            sides = [[k for k in lines if (k.model, k.row) == (model, row)] for row in rows]
            if not all(sides):
                continue
            first, second = (_lowest(side) for side in sides)
            ours = unit * (first.ours.mean - second.ours.mean) if first and second else None
            comparable = model == cell.model and agrees(cell, protocol)
            selected = max(map(len, sides)) > 1
            yield Change(model, ours, cell, comparable, selected)


def _lowest(lines: Sequence[Line]) -> Line | None:
    """The line of the lowest perplexity; None where there are several and none has one."""
    if len(lines) == 1:
        return lines[0]
    pairs = [(line.perplexity, line) for line in lines if line.perplexity is not None]
    return min(pairs, key=lambda pair: pair[0])[1] if pairs else None


def _order(line: Line) -> tuple[Any, ...]:
    row = line.row
    return (
        row != DENSE,
        row.sparsity,
        row.pattern,
        row.pruner,
        row.schedule != "uniform",
        row.schedule,
        row.method != "none",
        row.method,
        row.variant,
        line.settings,
        line.model,
    )

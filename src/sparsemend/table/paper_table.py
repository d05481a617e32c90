"""Show results in the shape of a paper's table: rows of methods, columns of models.

Each cell holds our number (`ours`) beside the published one (`theirs`).  Ours is the mean over
seeds with the sample deviation (n - 1); every run of one row must agree in everything but the seed,
so runs that differ in a knob become rows of their own, told apart by it.  A published value is
shown with its source; a difference is only taken where model and protocol are the published ones.
Where a table is repeated on another model (the embedded one, say), the published column is of one
reference model and carries no difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sparsemend.errors import nearest
from sparsemend.names import HARNESS
from sparsemend.result.protocol import Protocol
from sparsemend.result.runs import DENSE, Row, RunRecord
from sparsemend.table.measurement import AVERAGE, AVERAGED, measurement_of, published_shots
from sparsemend.table.published import UNKNOWN, Published, published_numbers


@dataclass(frozen=True)
class Ours:
    """Our number: one value per seed."""

    values: tuple[float, ...]
    runs: int
    dirty: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample deviation over seeds, None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


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

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        if self.theirs is None or not self.comparable or self.theirs.number is None:
            return None
        return self.ours.mean - self.theirs.number


@dataclass(frozen=True)
class Change:
    """One row minus another, where a difference was published ("atp minus uniform")."""

    model: str
    ours: float
    theirs: Published
    comparable: bool


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
    groups: dict[tuple[str, Row], list[tuple[RunRecord, str]]] = {}
    for run in runs:
        for row, state in run.states():
            groups.setdefault((run.model, row), []).append((run, state))
    theirs = published_cells(title, metric, measured)
    lines = [
        Line(model, measured[model], row, settings, ours, *theirs.of(model, row))
        for (model, row), members in groups.items()
        for settings, ours in distinguish_settings(members, metric)
    ]
    if not lines:
        raise ValueError(f"{metric} of {title} is not finite in any run; there is nothing to show")
    lines.sort(key=_order)
    return PaperTable(title, metric, tuple(lines), tuple(changes(title, metric, lines)))


def check_metric(runs: Sequence[RunRecord], metric: str) -> None:
    """Raise ValueError, naming the metrics that there are, where no run has this one."""
    metrics = sorted({name for run in runs for s in run.result.metrics.values() for name in s})
    if metric not in metrics:
        raise ValueError(
            f"no run measured {metric!r}\n{nearest(metric, metrics, alike=0.5)}measured: "
            f"{', '.join(metrics) or 'nothing'}; choose one with --metric"
        )


def with_metric(runs: Sequence[RunRecord], metric: str) -> list[RunRecord]:
    """The runs that measured the metric in some state."""
    return [run for run in runs if any(metric in s for s in run.result.metrics.values())]


def protocols(runs: Sequence[RunRecord], metric: str) -> dict[str, Protocol]:
    """The protocol of every model; raises ValueError naming two that must not share a table.

    Runs of one model agree in the whole protocol.  Models may differ in dtype and, as their
    tokenizers do, in the number of tokens: each model has a column of its own.
    """
    by_model: dict[str, tuple[Protocol, RunRecord]] = {}
    for run in runs:
        protocol = run.protocol(metric)
        for model, (other, earlier) in by_model.items():
            same = protocol == other if model == run.model else _alike(protocol, other)
            if not same:
                raise ValueError(_mixture_error(other, earlier, protocol, run))
        by_model.setdefault(run.model, (protocol, run))
    return {model: protocol for model, (protocol, _) in by_model.items()}


def _alike(one: Protocol, other: Protocol) -> bool:
    return replace(one, dtype="", tokens=0) == replace(other, dtype="", tokens=0)


def _mixture_error(
    first: Protocol, first_run: RunRecord, second: Protocol, second_run: RunRecord
) -> str:
    names = [field.name for field in fields(Protocol)]
    key = next(n for n in names if getattr(first, n) != getattr(second, n))
    return (
        f"{first_run.name} mixes two protocols, whose numbers cannot share a column:\n"
        f"  {first.label} ({first_run.folder})\n  {second.label} ({second_run.folder})\n"
        "give the folders of one protocol, or choose it, for example "
        f"--where {key}={getattr(first, key)}"
    )


def distinguish_settings(
    members: Sequence[tuple[RunRecord, str]], metric: str
) -> Iterable[tuple[str, Ours]]:
    """Yield (the settings that tell runs apart, our number) for each setting among runs of one row.

    members: pairs (run, state).
    """
    settings = [run.settings(state) for run, state in members]
    keys = differing(settings)
    groups: dict[str, list[tuple[RunRecord, float]]] = {}
    for (run, state), run_settings in zip(members, settings, strict=True):
        value = run.value(state, metric)
        if value is not None:
            shown = ", ".join(f"{key}={run_settings.get(key, 'unset')}" for key in keys)
            groups.setdefault(shown, []).append((run, value))
    for shown, pairs in groups.items():
        yield shown, ours_of(pairs)


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which some of the settings differ."""
    keys = {key for run_settings in settings for key in run_settings}
    return sorted(
        k
        for k in keys
        if len({repr(run_settings.get(k, "unset")) for run_settings in settings}) > 1
    )


def ours_of(pairs: Sequence[tuple[RunRecord, float]]) -> Ours:
    """Our number with one value per seed.

    Runs that repeat a seed (other methods on one pruned model) are averaged.
    """
    seeds: dict[int, list[float]] = {}
    for run, value in pairs:
        seeds.setdefault(run.seed, []).append(value)
    values = tuple(statistics.fmean(same) for same in seeds.values())
    return Ours(values, len(pairs), any(run.dirty for run, _ in pairs))


def changes(title: str, metric: str, lines: Sequence[Line]) -> Iterator[Change]:
    """Yield our difference of two rows for each difference that the table publishes, per model.

    Of rows that only a setting tells apart (ATP's common difference) the best counts, as published.
    Differences of accuracies are in percentage points.
    """
    accuracy = metric.startswith(HARNESS)
    best, unit = (max, 100) if accuracy else (min, 1)
    for cell in published_numbers():
        if cell.title != title or cell.sides is None or metric_of(cell.sides[0]) != metric:
            continue
        rows = [row_of(side) for side in cell.sides]
        for model, protocol in {line.model: line.protocol for line in lines}.items():
            sides = [[k.ours.mean for k in lines if (k.model, k.row) == (model, r)] for r in rows]
            if all(sides):
                comparable = model == cell.model and agrees(cell, protocol)
                yield Change(model, unit * (best(sides[0]) - best(sides[1])), cell, comparable)


@dataclass(frozen=True)
class Beside:
    """The published cells that may stand beside our rows.

    cells: by model and row; reference: the model whose cells stand beside rows of a model without
    cells of its own, or None; measured: our protocol by model.
    """

    cells: Mapping[tuple[str, Row], Published]
    reference: str | None
    measured: Mapping[str, Protocol]

    def of(self, model: str, row: Row) -> tuple[Published | None, bool]:
        """The published cell beside our row, and whether model and protocol are the cell's own."""
        cell = self.cells.get((model, row))
        if cell is not None:
            return cell, agrees(cell, self.measured[model])
        if self.reference is None or model in {published for published, _ in self.cells}:
            return None, False
        return self.cells.get((self.reference, row)), False


def published_cells(title: str, metric: str, measured: Mapping[str, Protocol]) -> Beside:
    """The published cells of the table `title`, or of every table where none has that title."""
    repeated = any(cell.title == title for cell in published_numbers())
    cells: dict[tuple[str, Row], Published] = {}
    for cell in published_numbers():
        relevant = cell.title == title or not repeated
        if relevant and metric_of(cell) == metric and cell.value != UNKNOWN:
            key, protocol = (cell.model, row_of(cell)), measured.get(cell.model)
            # of several sources of one number, prefer one that agrees in protocol and is unmarked
            if key not in cells or _doubt(cell, protocol) < _doubt(cells[key], protocol):
                cells[key] = cell
    models = [model for model, _ in cells]
    reference = max(dict.fromkeys(models), key=models.count, default=None)
    return Beside(cells, reference if repeated else None, measured)


def metric_of(cell: Published) -> str | None:
    """The name of a published metric in our runs; None for one that they do not measure."""
    measurement = measurement_of(cell)
    return measurement.name if measurement else None


def row_of(cell: Published) -> Row:
    """The row that a published number belongs to."""
    if cell.dense:
        return DENSE
    sparsity = float("nan") if cell.sparsity == UNKNOWN else float(cell.sparsity)
    return Row(sparsity, cell.pattern, cell.pruner, cell.schedule, cell.method, cell.variant)


def agrees(cell: Published, protocol: Protocol) -> bool:
    """Whether a published number was measured like ours; what it does not state counts against it.

    An accuracy is comparable where all items were asked after equally many solved examples, in any
    version of the harness; a mean is comparable where it is over the paper's tasks.
    """
    if protocol.text == HARNESS:
        same = cell.dataset != AVERAGE or protocol.split == AVERAGED.get(cell.paper)
        same = same and published_shots(cell) in (None, protocol.shots)
        return same and protocol.items == "all" and protocol.statistics == "exact"
    theirs = (cell.dataset, cell.split, cell.seqlen)
    return theirs == (protocol.text, protocol.split, str(protocol.seqlen)) and (
        protocol.statistics == "exact"
    )


def _doubt(cell: Published, protocol: Protocol | None) -> tuple[bool, bool]:
    return protocol is None or not agrees(cell, protocol), cell.mark not in (UNKNOWN, "image")


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

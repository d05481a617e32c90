"""The published cells that may stand beside our rows, and whether they are comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsemend.names import HARNESS
from sparsemend.result.protocol import Protocol
from sparsemend.result.runs import DENSE, Row
from sparsemend.table.measurement import (
    AVERAGE,
    AVERAGED,
    WORDS,
    measurement_of,
    published_shots,
)
from sparsemend.table.published import UNKNOWN, Published, published_numbers


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
        if model in {published for published, _ in self.cells}:
            return self._match_any_pruner(model, row), False
        if self.reference is None:
            return None, False
        exact = self.cells.get((self.reference, row))
        return exact or self._match_any_pruner(self.reference, row), False

    def _match_any_pruner(self, model: str, row: Row) -> Published | None:
        """The cell of a row whose source does not state the pruner, or the schedule either."""
        of_any_pruner = replace(row, pruner=UNKNOWN)
        rows = (of_any_pruner, replace(of_any_pruner, schedule=UNKNOWN))
        return next((self.cells[model, r] for r in rows if (model, r) in self.cells), None)


def published_cells(title: str, metric: str, measured: Mapping[str, Protocol]) -> Beside:
    """The published cells of the table `title` with this metric.

    Where no table has that title they are those of its paper, or where that has none all.
    """
    numbers = [c for c in published_numbers() if metric_of(c) == metric and c.value != UNKNOWN]
    repeated = any(cell.title == title for cell in published_numbers())
    paper, named, _ = title.partition("/")
    of_paper = [cell for cell in numbers if named and cell.paper == paper]
    if repeated:
        numbers = [cell for cell in numbers if cell.title == title]
    cells: dict[tuple[str, Row], Published] = {}
    for cell in numbers if repeated else of_paper or numbers:
        key, protocol = (cell.model, row_of(cell)), measured.get(cell.model)
        # of several numbers of one row, prefer our text, then our protocol, then one unmarked
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

    An accuracy is comparable where all items of the task's own split were asked after equally many
    solved examples, in any version of the harness; a mean where it is over the paper's tasks; a
    perplexity of words where windows are as long.
    """
    as_published = (protocol.statistics, protocol.calibration) == ("exact", "text")
    if protocol.text == HARNESS:
        same = cell.dataset != AVERAGE or protocol.split == AVERAGED.get(cell.paper)
        same = same and published_shots(cell) in (None, protocol.shots) and cell.split == UNKNOWN
        if cell.metric == WORDS:
            same = same and cell.seqlen == str(protocol.seqlen)
        return same and protocol.items == "all" and as_published
    theirs = (cell.dataset, cell.split, cell.seqlen)
    ours = (protocol.text, protocol.split, str(protocol.seqlen))
    return theirs == ours and as_published


def _doubt(cell: Published, protocol: Protocol | None) -> tuple[bool, bool, bool]:
    marked = cell.mark not in (UNKNOWN, "image")
    if protocol is None:
        return True, True, marked
    another = protocol.text != HARNESS and cell.dataset != protocol.text
    return another, not agrees(cell, protocol), marked

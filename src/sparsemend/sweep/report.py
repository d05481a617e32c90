"""Report how a sweep ended: one table on the terminal, summary.csv, and an honest exit code.

A Hydra callback: it writes into the sweep's folder that the sweep began (so that `resume=auto`
finds one that was killed) and reports when the sweep ends, even when it ends early.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from sparsemend.files import write_text
from sparsemend.names import METRIC, STATES
from sparsemend.result.equal_sparsity import unequal_sparsities
from sparsemend.result.format import format_share
from sparsemend.result.sections import Reused
from sparsemend.sweep import cells as sweep
from sparsemend.sweep.read import (
    Cell,
    format_perplexity,
    read_cells,
    varying_keys,
    wide_console,
)

SUMMARY = "summary.csv"


class SweepReport(Callback):
    """Records that a sweep began; reports its cells at the end, and exits with 1 where one is bad.

    Hydra ends callbacks in reverse order: this one is the first of run.yaml, so that the reports
    that a search or an arena adds are written before it exits.
    """

    def __init__(self, *, table: bool) -> None:
        """table: print a row per cell."""
        self.table = table

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep.begin(Path(config.hydra.sweep.dir), list(config.hydra.overrides.task))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        cells = read_cells(folder)
        ended_well = sys.exc_info()[0] is None
        bad = [cell for cell in cells if cell.status != "finished"]
        sweep.end(folder, finished=bool(cells) and not bad and ended_well)
        write_text(folder / SUMMARY, summary_csv(cells))
        console = wide_console()
        if self.table:
            console.print(summary_table(cells, folder))
            for line in unequal_sparsities(c.counted for c in cells if c.status == "finished"):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        for cell in bad:
            text = f"cell {cell.name} {cell.status}: {cell.reason}"
            console.print(text, markup=False, soft_wrap=True)
        console.print(f"table: {folder / SUMMARY}", soft_wrap=True, highlight=False)
        if not cells and ended_well:
            console.print(f"no cell of this sweep is in {folder}", soft_wrap=True)
            sys.exit(1)
        if bad and ended_well:
            console.print(
                f"{len(bad)} of {len(cells)} cells did not finish; the same command with "
                f"hydra.sweep.dir={folder} (or resume=auto) redoes them alone",
                soft_wrap=True,
                highlight=False,
            )
            sys.exit(1)


def summary_csv(cells: Sequence[Cell]) -> str:
    """The text of summary.csv: a line per cell, columns in the order of their first appearance."""
    rows = [cell.row(varying_keys(cells)) for cell in cells]
    columns = {key: None for row in rows for key in row}
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def summary_table(cells: Sequence[Cell], folder: Path) -> Table:
    """A table with a row per cell.

    Columns: what varies, status, test perplexity per state, achieved sparsity, seconds, the run
    that pruned.
    """
    varying = varying_keys(cells)
    debug = "DEBUG RUNS: " if any(cell.debug_blocks for cell in cells) else ""
    table = Table(title=f"{debug}{folder}", caption=f"{METRIC}; all measurements in {SUMMARY}")
    for column in ("cell", *varying, "status"):
        table.add_column(column)
    for column in (*STATES, "achieved", "seconds", "pruned by"):
        table.add_column(column, justify="right")
    for cell in cells:
        seconds = cell.result.seconds if cell.result else None
        table.add_row(
            cell.name,
            *(cell.overrides.get(key, "") for key in varying),
            cell.status,
            *(format_perplexity(cell.metric(state, METRIC)) for state in STATES),
            format_share(cell.achieved),
            "-" if seconds is None else f"{seconds:.1f}",
            _maker(cell.result.cache.pruned if cell.result else None, folder),
        )
    return table


def _maker(origin: Reused | None, folder: Path) -> str:
    """The name of the run that pruned a cell's model: itself, another cell, or a run elsewhere."""
    if origin is None or not origin.hit:
        return "itself" if origin else "-"
    maker = Path(origin.made_by)
    return f"cell {maker.name}" if maker.parent == folder.absolute() else str(maker)

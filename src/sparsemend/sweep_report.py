"""What a sweep leaves behind: one table on the terminal, summary.csv, and an honest exit code.

A Hydra callback: it notes in the sweep's folder that the sweep began (so that `resume=auto` finds
one that was killed) and reports when it ends, also when it ends early.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from sparsemend import sweep
from sparsemend.files import write_text
from sparsemend.metric_names import METRIC
from sparsemend.resume import alive, read_result

log = logging.getLogger(__name__)

SUMMARY = "summary.csv"
STATES = ("dense", "pruned", "repaired")


@dataclass(frozen=True)
class Cell:
    """One cell as its folder tells it."""

    name: str
    overrides: Mapping[str, str]
    content: Mapping[str, Any]  # result.json; empty where the cell never began

    @property
    def status(self) -> str:
        """finished | failed | interrupted | running | killed | missing"""
        status = str(self.content.get("status", "missing"))
        return "killed" if status == "running" and not alive(self.content) else status

    def metric(self, state: str, name: str) -> float | None:
        """A measurement, None where it is not finite or was not made."""
        value: float | None = self.content.get("metrics", {}).get(state, {}).get(name)
        return value

    def row(self, varying: Sequence[str]) -> dict[str, Any]:
        """The cell as a line of summary.csv."""
        content = self.content
        measured = {
            f"{state}/{name}": value
            for state in STATES
            for name, value in content.get("metrics", {}).get(state, {}).items()
        }
        sparsity, cost = content.get("sparsity", {}), content.get("cost", {})
        pruned = content.get("cache", {}).get("pruned", {})
        return {
            "cell": self.name,
            **{key: self.overrides.get(key, "") for key in varying},
            "status": self.status,
            **measured,
            "sparsity/target": sparsity.get("target"),
            "sparsity/achieved": sparsity.get("achieved"),
            **{f"seconds/{stage}": values["seconds"] for stage, values in cost.items()},
            "seconds": content.get("seconds"),
            "pruned_by": pruned.get("made_by") if pruned.get("hit") else None,
            "config_hash": content.get("config_hash"),
            "error": (content.get("error") or {}).get("message"),
        }


class SweepReport(Callback):
    """Notes the sweep's beginning; reports its cells at the end."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep.begin(Path(config.hydra.sweep.dir), list(config.hydra.overrides.task))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        cells = read_cells(folder)
        bad = [cell for cell in cells if cell.status != "finished"]
        sweep.end(folder, finished=not bad and sys.exc_info()[0] is None)
        write_text(folder / SUMMARY, summary_csv(cells))
        console = wide_console()
        if config.get("search") is None:
            console.print(summary_table(cells, folder))
        for cell in bad:
            error = (cell.content.get("error") or {}).get("message", "")
            console.print(f"cell {cell.name} {cell.status}: {error}", markup=False, soft_wrap=True)
        console.print(f"table: {folder / SUMMARY}", soft_wrap=True, highlight=False)
        if config.get("search") is not None:
            from sparsemend.search_report import report

            task = OmegaConf.masked_copy(config, ["search", "statistics"])
            report(cells, sweep.plain(task), list(config.hydra.overrides.task), folder)
        if (config.get("arena") or {}).get("steps") is not None:
            _report_arena(folder)
        if bad and sys.exc_info()[0] is None:
            console.print(
                f"{len(bad)} of {len(cells)} cells did not finish; the same command with "
                f"hydra.sweep.dir={folder} (or resume=auto) redoes them alone",
                soft_wrap=True,
                highlight=False,
            )
            sys.exit(1)


def _report_arena(folder: Path) -> None:
    """Table and plot of the rows that finished; why there is none, where there is none."""
    from sparsemend.arena import read_arena
    from sparsemend.arena_table import show, write

    try:
        arena = read_arena([folder])
        show(arena)
        paths = write(arena, folder, "seconds")
    except ValueError as error:
        wide_console().print(str(error), markup=False, soft_wrap=True)
        return
    except Exception:  # the sweep's exit status is still to come
        log.exception("no table of the arena; sparsemend-tables arena %s tries again", folder)
        return
    for path in paths:
        wide_console().print(f"arena: {path}", soft_wrap=True, highlight=False)


def wide_console() -> Console:
    """The terminal; a log file, which has no width of its own, gets 120 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def read_cells(folder: Path) -> list[Cell]:
    """Every cell that began under a sweep's folder, by number.

    One that did not finish is left out where another with the same overrides did (a search repeats
    a broken trial under a new number).
    """
    cells = []
    for path in folder.glob("*/.hydra/overrides.yaml"):
        lines: list[str] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
        given = dict(line.split("=", 1) for line in lines if "=" in line)
        overrides = {key: value for key, value in given.items() if key != "resume"}
        home = path.parents[1]
        cells.append(Cell(home.name, overrides, read_result(home) or {}))
    done = [cell.overrides for cell in cells if cell.status == "finished"]
    kept = [cell for cell in cells if cell.status == "finished" or cell.overrides not in done]
    return sorted(kept, key=lambda c: (int(c.name) if c.name.isdigit() else -1, c.name))


def varying_keys(cells: Sequence[Cell]) -> list[str]:
    """The overridden keys in which cells differ, in the order of the command line."""
    keys = {key: None for cell in cells for key in cell.overrides}
    return [key for key in keys if len({cell.overrides.get(key) for cell in cells}) > 1]


def summary_csv(cells: Sequence[Cell]) -> str:
    """One line per cell; columns in the order in which cells bring them."""
    rows = [cell.row(varying_keys(cells)) for cell in cells]
    columns = {key: None for row in rows for key in row}
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def summary_table(cells: Sequence[Cell], folder: Path) -> Table:
    """What varies, how it ended, test perplexity per state, sparsity, seconds."""
    varying = varying_keys(cells)
    table = Table(title=str(folder), caption=f"{METRIC}; all measurements in {SUMMARY}")
    for column in ("cell", *varying, "status"):
        table.add_column(column)
    for column in (*STATES, "sparsity", "seconds", "pruned by"):
        table.add_column(column, justify="right")
    for cell in cells:
        sparsity = cell.content.get("sparsity", {}).get("achieved")
        seconds = cell.content.get("seconds")
        table.add_row(
            cell.name,
            *(cell.overrides.get(key, "") for key in varying),
            cell.status,
            *(shown(cell.metric(state, METRIC)) for state in STATES),
            "-" if sparsity is None else f"{sparsity:.4f}",
            "-" if seconds is None else f"{seconds:.1f}",
            _maker(cell.content.get("cache", {}).get("pruned"), folder),
        )
    return table


def _maker(origin: Mapping[str, Any] | None, folder: Path) -> str:
    """Who pruned the model of a cell: itself, another cell, or a run elsewhere."""
    if not origin or not origin["hit"]:
        return "itself" if origin else "-"
    maker = Path(origin["made_by"])
    return f"cell {maker.name}" if maker.parent == folder.absolute() else str(maker)


def shown(value: float | None) -> str:
    """A perplexity for a table."""
    return "-" if value is None else f"{value:.3f}" if value < 1e5 else f"{value:.3g}"

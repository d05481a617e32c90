"""Read the cells of a sweep from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from sparsemend.names import STATES
from sparsemend.result.folder import alive, read_result
from sparsemend.result.format import format_metric
from sparsemend.result.run_result import RunResult
from sparsemend.terminal import CELLS_WIDTH, console

REASONS = {  # of cells that ended without an error of their own
    "interrupted": "stopped by Ctrl-C or by a signal",
    "killed": "its process ended before it could say why",
    "running": "its process still runs",
    "missing": "the sweep ended before it could write a result",
}


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep, as read from its folder."""

    name: str
    overrides: Mapping[str, str]
    result: RunResult | None  # None where the cell never began

    @property
    def status(self) -> str:
        """finished | failed | interrupted | running | killed | missing"""
        if self.result is None:
            return "missing"
        status, process = self.result.status, self.result.process
        return "killed" if status == "running" and not alive(status, process) else status

    @property
    def error(self) -> str:
        """The message of the error that ended the cell, empty where there was none."""
        return self.result.error.message if self.result and self.result.error else ""

    @property
    def reason(self) -> str:
        """Why the cell did not finish; empty where it did."""
        return self.error or REASONS.get(self.status, "")

    def metric(self, state: str, name: str) -> float | None:
        """A measurement, None where it is not finite or was not made."""
        return self.result.metric(state, name) if self.result else None

    @property
    def achieved(self) -> float | None:
        """The exact zeros as a share of the prunable weights, None before they are counted."""
        return self.result.sparsity.achieved if self.result else None

    @property
    def counted(self) -> tuple[str, float | None, float | None]:
        """Name, target and achieved sparsity, for `unequal_sparsities`."""
        target = self.result.sparsity.target if self.result else None
        return f"cell {self.name}", target, self.achieved

    @property
    def debug_blocks(self) -> int | None:
        """The blocks of a debug run, whose numbers mean nothing; None of others."""
        debug = self.result.config.get("debug") if self.result else None
        return debug["blocks"] if debug else None

    def row(self, varying: Sequence[str]) -> dict[str, Any]:
        """The cell as a line of summary.csv."""
        result = self.result or RunResult(status=self.status, config={})
        measured = {
            f"{state}/{name}": value
            for state in STATES
            for name, value in result.metrics.get(state, {}).items()
        }
        pruned = result.cache.pruned
        return {
            "cell": self.name,
            **{key: self.overrides.get(key, "") for key in varying},
            "status": self.status,
            **({"debug/blocks": self.debug_blocks} if self.debug_blocks else {}),
            **measured,
            "sparsity/target": result.sparsity.target,
            "sparsity/achieved": result.sparsity.achieved,
            **{f"seconds/{stage}": spent.seconds for stage, spent in result.cost.items()},
            "seconds": result.seconds,
            "pruned_by": pruned.made_by if pruned and pruned.hit else None,
            "config_hash": result.config_hash,
            "error": self.reason or None,
        }


def wide_console() -> Console:
    """The terminal, or a log file that is wide enough for a row per cell."""
    return console(CELLS_WIDTH)


def overrides_path(cell: Path) -> Path:
    """Where Hydra writes the overrides of a cell."""
    return cell / ".hydra" / "overrides.yaml"


def overrides_of(cell: Path) -> list[str]:
    """The overrides that Hydra wrote into a cell's folder; empty where it did not begin."""
    path = overrides_path(cell)
    if not path.is_file():
        return []
    lines: list[str] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    return lines


def read_cells(folder: Path) -> list[Cell]:
    """Every cell that began under a sweep's folder, by number.

    One that did not finish is left out where another with the same overrides did (a search repeats
    a broken trial under a new number).
    """
    cells = []
    for path in folder.glob("*/.hydra/overrides.yaml"):
        home = path.parents[1]
        pairs = dict(line.split("=", 1) for line in overrides_of(home) if "=" in line)
        overrides = {key: value for key, value in pairs.items() if key != "resume"}
        cells.append(Cell(home.name, overrides, read_result(home)))
    done = [cell.overrides for cell in cells if cell.status == "finished"]
    kept = [cell for cell in cells if cell.status == "finished" or cell.overrides not in done]
    return sorted(kept, key=lambda c: (int(c.name) if c.name.isdigit() else -1, c.name))


def varying_keys(cells: Sequence[Cell]) -> list[str]:
    """The overridden keys in which cells differ, in the order of the command line."""
    keys = {key: None for cell in cells for key in cell.overrides}
    return [key for key in keys if len({cell.overrides.get(key) for cell in cells}) > 1]


def format_perplexity(value: float | None) -> str:
    """The text of a perplexity in a table, `-` for None."""
    return format_metric(value, 3)

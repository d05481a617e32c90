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
    content: Mapping[str, Any]  # result.json; empty where the cell never began

    @property
    def status(self) -> str:
        """finished | failed | interrupted | running | killed | missing"""
        status = str(self.content.get("status", "missing"))
        return "killed" if status == "running" and not alive(self.content) else status

    @property
    def reason(self) -> str:
        """Why the cell did not finish; empty where it did."""
        message = (self.content.get("error") or {}).get("message")
        return message or REASONS.get(self.status, "")

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
            "error": self.reason or None,
        }


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
        pairs = dict(line.split("=", 1) for line in lines if "=" in line)
        overrides = {key: value for key, value in pairs.items() if key != "resume"}
        home = path.parents[1]
        cells.append(Cell(home.name, overrides, read_result(home) or {}))
    done = [cell.overrides for cell in cells if cell.status == "finished"]
    kept = [cell for cell in cells if cell.status == "finished" or cell.overrides not in done]
    return sorted(kept, key=lambda c: (int(c.name) if c.name.isdigit() else -1, c.name))


def varying_keys(cells: Sequence[Cell]) -> list[str]:
    """The overridden keys in which cells differ, in the order of the command line."""
    keys = {key: None for cell in cells for key in cell.overrides}
    return [key for key in keys if len({cell.overrides.get(key) for cell in cells}) > 1]


def format_perplexity(value: float | None) -> str:
    """The text of a perplexity in a table, `-` for None."""
    return "-" if value is None else f"{value:.3f}" if value < 1e5 else f"{value:.3g}"

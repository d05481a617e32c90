"""The report of a bench: tables on the terminal, bench.md, and bench.json with every round."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sparsemend.bench.suite.base import Section, Setting
from sparsemend.files import write_json, write_text
from sparsemend.result.record import provenance

SCHEMA = "sparsemend-bench-1"
NONE = "-"
UNBROKEN = ("", "range", "GFLOP", "trained")  # columns that are unreadable when wrapped


class Report:
    """The growing content of one bench; on disk after every section."""

    def __init__(self, cfg: DictConfig, setting: Setting) -> None:
        self.setting = setting
        self.sections: list[Section] = []
        self.head: dict[str, Any] = {
            "schema": SCHEMA,
            "config": OmegaConf.to_container(cfg, resolve=True),
            "provenance": provenance().to_json(),
            "machine": machine(setting.device),
        }

    @property
    def heading(self) -> str:
        """Model, dtype, device and threads in one line."""
        dtype = str(self.setting.dtype).removeprefix("torch.")
        facts = self.head["machine"]
        return (
            f"{self.setting.shape}, sparsity {self.setting.sparsity}, {dtype}, "
            f"{facts['device']}, {facts['threads']} threads, {self.setting.rounds} rounds"
        )

    def add(self, section: Section) -> None:
        self.sections.append(section)
        self.write("running")

    def write(self, status: str) -> None:
        """Write bench.json and bench.md, each whole or not at all."""
        sections = [section.content() for section in self.sections]
        content = {**self.head, "status": status, "sections": sections}
        write_json(self.setting.out / "bench.json", content)
        tables = [markdown(section) for section in self.sections]
        write_text(self.setting.out / "bench.md", "\n".join([f"{self.heading}\n", *tables]))


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that computed, without the names of its owner."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def headings(section: Section) -> list[str]:
    column_headings = [column.heading for column in section.columns]
    return ["", "seconds", f"x {section.baseline}", "range", *column_headings]


def cells(section: Section) -> list[list[str]]:
    """The table's body as text; `reasons` says why a refused row is empty."""
    return [_cells(section, content) for content in section.content()["rows"]]


def _cells(section: Section, row: dict[str, Any]) -> list[str]:
    low_high, refused = row["ratio_range"], row["refused"] is not None
    return [
        row["label"],
        NONE if row["median_seconds"] is None else _shown_seconds(row["median_seconds"]),
        NONE if row["median_ratio"] is None else f"{row['median_ratio']:.3f}",
        NONE if low_high is None else f"{low_high[0]:.3f} - {low_high[1]:.3f}",
        *(NONE if refused else column.shown(row) for column in section.columns),
    ]


def _shown_seconds(seconds: float) -> str:
    """Three decimals, and three digits at least."""
    return f"{seconds:.3f}" if seconds >= 0.1 else f"{seconds:.3g}"


def reasons(section: Section) -> list[str]:
    """One line for every refused row, which says why it is empty."""
    return [f"{row.label}: {row.refused}" for row in section.rows if row.refused]


def table(section: Section) -> Table:
    """The section for the terminal."""
    shown = Table(title=section.title, box=SIMPLE_HEAD, caption="\n".join(reasons(section)) or None)
    for index, heading in enumerate(headings(section)):
        shown.add_column(heading, justify="right" if index else "left", no_wrap=heading in UNBROKEN)
    for line in cells(section):
        shown.add_row(*line)
    return shown


def markdown(section: Section) -> str:
    """The section as a Markdown table under its title."""
    lines = [f"### {section.title}", "", _line(headings(section))]
    lines.append(_line(["---", *["---:"] * (len(headings(section)) - 1)]))
    lines += [_line(line) for line in cells(section)]
    notes = [f"\n{reason}" for reason in reasons(section)]
    return "\n".join([*lines, *notes]) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"

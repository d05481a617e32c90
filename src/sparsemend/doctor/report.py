"""The doctor's answer as a table and as JSON (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from sparsemend.doctor.verdict import Capacity, Finding, Need, Verdict

SHAPE_ALONE = (
    "peaks are an estimate: a dry run of the stages' own code without weights, carried on to all "
    "blocks; the line is the one under which most is alive"
)


@dataclass(frozen=True)
class Relief:
    """Overrides that were tried by a dry run, and the peaks of all stages with them, in bytes.

    remedies: key=value lines, in the order in which each was seen to help; enough: whether every
    stage fits with them; alters: what they change in the numbers.
    """

    lines: Sequence[str]
    peaks: Mapping[tuple[str, str], int]
    enough: bool
    alters: Sequence[str] = ()


@dataclass(frozen=True)
class Examination:
    """All that the doctor says; needs are empty where the dry run could not be made."""

    command: Sequence[str]
    capacity: Capacity
    needs: Sequence[Need]
    findings: Sequence[Finding]
    files: Mapping[str, int]
    blocks: int = 0
    relief: Relief | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage; empty: not probed

    @property
    def verdict(self) -> Verdict:
        memory = [need.verdict for need in self.needs]
        return Verdict.of_all([*memory, *(finding.verdict for finding in self.findings)])

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "sparsemend-doctor-1",
            "command": list(self.command),
            "verdict": self.verdict.value,
            "estimate": True,
            "blocks": self.blocks,
            "there": {
                "host_bytes": self.capacity.host,
                "device_bytes": self.capacity.device,
                "disk_bytes": self.capacity.disk,
                "device": self.capacity.device_name,
            },
            "needs": [
                {
                    "stage": need.stage,
                    "device": need.device,
                    "peak_bytes": need.bytes,
                    "with_margin_bytes": round(need.with_margin),
                    "line": need.line,
                    "verdict": need.verdict.value,
                }
                for need in self.needs
            ],
            "relief": None
            if self.relief is None
            else {
                "overrides": list(self.relief.lines),
                "enough": self.relief.enough,
                "alters": list(self.relief.alters),
                "peaks": [
                    {"stage": stage, "device": device, "peak_bytes": size}
                    for (stage, device), size in self.relief.peaks.items()
                ],
            },
            "files": dict(self.files),
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
            "findings": [
                {
                    "what": finding.what,
                    "verdict": finding.verdict.value,
                    "says": finding.says,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
        }


def show(report: Examination, console: Console) -> None:
    """Print the answer: memory per stage, what would lower it, then the surroundings."""
    if report.needs:
        console.print(memory_table(report))
    if report.relief is not None:
        console.print(relief_line(report.relief), highlight=False, soft_wrap=True)
    if report.seconds:
        console.print(seconds_line(report.seconds), highlight=False, soft_wrap=True)
    console.print(surroundings_table(report))
    console.print(f"{report.verdict.value}", style="bold", highlight=False)


def memory_table(report: Examination) -> Table:
    """A row per stage: GB on the device and on the host, the line of the tighter one, go or not."""
    there = report.capacity
    table = Table(title="peak memory by stage, GB (estimate)", caption=SHAPE_ALONE)
    table.add_column("stage")
    table.add_column("device", justify="right")
    table.add_column("host", justify="right")
    table.add_column("line")
    table.add_column("")
    seconds = report.seconds
    if seconds:
        table.add_column("seconds", justify="right")
    stages = dict.fromkeys(need.stage for need in report.needs)
    for stage in stages:
        here = {need.device: need for need in report.needs if need.stage == stage}
        tight = max(here.values(), key=tightness)
        verdict = Verdict.of_all(need.verdict for need in here.values())
        row = [stage, gigabytes(here.get("device")), gigabytes(here.get("host"))]
        time = [f"{seconds[stage]:,.0f}" if stage in seconds else ""] if seconds else []
        table.add_row(*row, tight.line, verdict.value, *time)
    table.add_section()
    table.add_row("free here", size(there.device), size(there.host), there.device_name, "")
    return table


def tightness(need: Need) -> float:
    """The share of what is there that a need takes."""
    return need.with_margin / need.there if need.there else float(need.bytes)


def relief_line(relief: Relief) -> str:
    """`with hardware.micro_batch=1 ...: it fits`."""
    fits = "every stage fits" if relief.enough else "still too much"
    most = max(relief.peaks.values(), default=0)
    alters = f" ({'; '.join(relief.alters)})" if relief.alters else ""
    return f"with {' '.join(relief.lines)}{alters}: {fits}, at most {most / 1e9:,.1f} GB"


def seconds_line(seconds: Mapping[str, float]) -> str:
    """What the seconds are, and their sum."""
    return (
        f"{sum(seconds.values()):,.0f} seconds in all (estimate: real runs of one and two blocks "
        "of random weights, carried on); loading, and stages without a number, not counted"
    )


def surroundings_table(report: Examination) -> Table:
    table = Table(title="surroundings", show_header=False)
    table.add_column("what")
    table.add_column("")
    table.add_column("says", overflow="fold")
    for finding in report.findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        table.add_row(finding.what, finding.verdict.value, f"{finding.says}{remedy}")
    return table


def gigabytes(need: Need | None) -> str:
    return "-" if need is None else size(need.bytes)


def size(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:,.2f}"

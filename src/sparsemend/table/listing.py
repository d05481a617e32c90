"""What `sparsemend-tables list` prints, and the command line that repeats one cell."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sparsemend.config.locations import conf_folder
from sparsemend.errors import OverrideError
from sparsemend.table.experiments import Job, job_for
from sparsemend.table.measurement import measurement_of
from sparsemend.table.needs import GPU_RATE, Needs, needs_of, shapes, this_machine
from sparsemend.table.published import PERCENT, UNKNOWN, Published, find_cell, published_numbers


@dataclass(frozen=True)
class ListedCell:
    """A published cell and how it can be repeated here."""

    cell: Published
    job: Job | None
    needs: Needs | None

    @property
    def runnable(self) -> bool:
        return self.needs is not None and this_machine().can_run(self.needs)


def entries(paper: str | None = None) -> list[ListedCell]:
    """Every published cell (of one paper); raises OverrideError on an unknown paper."""
    papers = sorted({cell.paper for cell in published_numbers()})
    if paper is not None and paper not in papers:
        close = difflib.get_close_matches(paper, papers, n=3)
        nearest = f"nearest: {', '.join(close)}\n" if close else ""
        raise OverrideError(f"unknown paper {paper!r}\n{nearest}all papers: {', '.join(papers)}")
    chosen = [cell for cell in published_numbers() if paper in (None, cell.paper)]
    return [_entry(cell) for cell in chosen]


def _entry(cell: Published) -> ListedCell:
    job = job_for(cell)
    return ListedCell(cell, job, needs_of(job) if job else None)


def print_listing(paper: str | None, *, summary: bool) -> None:
    """One line per cell, then published / with config / runnable here per paper."""
    found = entries(paper)
    console = Console(soft_wrap=True)
    if not summary:
        for entry in found:
            console.print(line(entry), highlight=False, markup=False)
    console.print(counts(found))
    here = this_machine()
    console.print(
        f"here: {here.name}, {here.bytes / 2**30:.0f} GiB.  Memory and time are estimates from the "
        "model's size, not measured; runnable: fits and ends within a day.",
        highlight=False,
    )


def line(entry: ListedCell) -> str:
    """`identity  value  needs  experiment`, or why there is no experiment."""
    cell = entry.cell
    mark = f" [{cell.mark}]" if cell.mark != UNKNOWN else ""
    told = f"{cell.identity}  {cell.value}{mark}"
    if entry.job is None:
        return f"{told}  no config: {reason(cell)}"
    told += f"  {entry.job.experiment}{assumption(cell, entry.job)}"
    if entry.needs is None:
        return told
    runnable = "runnable here" if entry.runnable else "not here"
    return (
        f"{told}  {entry.needs.bytes / 2**30:.1f} GiB, "
        f"{_time(entry.needs.flops / GPU_RATE)} on an A100, "
        f"{_time(entry.needs.seconds(this_machine()))} here: {runnable}"
    )


def assumption(cell: Published, job: Job) -> str:
    """What the job takes where the source does not say: ` (pruner not stated: wanda here)`."""
    open_ = {"pruner": cell.pruner, "schedule": cell.schedule}
    taken = {"pruner": job.values["pruner"], "schedule": job.schedule}
    told = [f"{name} not stated: {taken[name]} here" for name in open_ if open_[name] == UNKNOWN]
    return f" ({', '.join(told)})" if told and not cell.dense else ""


def reason(cell: Published) -> str:
    """Why no experiment repeats a cell, as far as the cell itself tells."""
    if cell.sides is not None:
        return next((reason(side) for side in cell.sides if job_for(side) is None), "no experiment")
    found = measurement_of(cell)
    if found is None:
        return why_unmeasured(cell)
    if cell.model not in shapes():
        return f"no preset of model {cell.model}"
    groups = {"pruner": cell.pruner, "sparsity_schedule": cell.schedule, "method": cell.method}
    for group, member in groups.items():
        if member != UNKNOWN and not (conf_folder() / group / f"{member}.yaml").exists():
            return f"no {group} {member}"
    if cell.pattern == "structured":
        return "no structured pruning"
    unstated = [name for name in ("pruner", "sparsity") if getattr(cell, name) == UNKNOWN]
    if unstated:
        return f"{' and '.join(unstated)} not stated"
    if not (conf_folder() / "evaluation" / f"{found.evaluation}.yaml").exists():
        return f"no evaluation {found.evaluation}"
    return "no experiment"


def why_unmeasured(cell: Published) -> str:
    """Why no run measures a metric."""
    if cell.metric == PERCENT:
        return f"the tasks of {cell.dataset} are not stated"
    return f"{cell.metric} is not a metric of a run"


def counts(found: Sequence[ListedCell]) -> Table:
    """Per paper: published cells, with a config, runnable on this machine."""
    table = Table(title="published cells")
    table.add_column("paper")
    for column in ("published", "with config", "runnable here"):
        table.add_column(column, justify="right")
    for paper in dict.fromkeys(entry.cell.paper for entry in found):
        table.add_row(paper, *_count_line([e for e in found if e.cell.paper == paper]))
    table.add_section()
    table.add_row("all", *_count_line(found))
    return table


def command_of(identity: str, scale: str | None, overrides: Sequence[str]) -> list[str]:
    """The `sparsemend` command line that repeats a cell.

    With a scale the model stays that of the scale.  Raises OverrideError on an unknown cell,
    ValueError where no experiment repeats it.
    """
    cell = find_cell(identity)
    job = job_for(cell)
    if job is None:
        raise ValueError(f"no experiment repeats {identity}: {reason(cell)}")
    line = ["sparsemend", f"experiment={job.experiment}"]
    chosen = list(job.overrides)
    if scale is not None:
        line.append(f"scale={scale}")
        chosen = [override for override in chosen if not override.startswith("model=")]
    return [*line, *chosen, *overrides]


def _count_line(found: Sequence[ListedCell]) -> list[str]:
    with_config = sum(entry.job is not None for entry in found)
    runnable = sum(entry.runnable for entry in found)
    return [str(len(found)), str(with_config), str(runnable)]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"

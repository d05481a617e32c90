"""The output of `sparsemend-tables list`, and the command line that repeats one cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rich.console import Console
from rich.table import Table

from sparsemend.config.locations import conf_folder
from sparsemend.errors import OverrideError, nearest
from sparsemend.table.experiments import job_for
from sparsemend.table.job import Job
from sparsemend.table.measurement import measurement_of
from sparsemend.table.needs import GPU_RATE, Needs, needs_of, shapes, this_machine
from sparsemend.table.published import PERCENT, UNKNOWN, Published, find_cell, published_numbers

MIXED_AVERAGE = "zero_shot_average_8"  # ALS: acc of some of eight tasks, acc_norm of the others
RARE = 5  # a reason of fewer cells has no line of its own in the summary


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
        near = nearest(paper, papers)
        raise OverrideError(f"unknown paper {paper!r}\n{near}all papers: {', '.join(papers)}")
    chosen = [cell for cell in published_numbers() if paper in (None, cell.paper)]
    return [_entry(cell) for cell in chosen]


def _entry(cell: Published) -> ListedCell:
    job = job_for(cell)
    return ListedCell(cell, job, needs_of(job) if job else None)


def print_listing(paper: str | None, *, summary: bool) -> None:
    """Print a line per cell, then the counts per paper and those of the reasons for no config.

    summary: print the counts alone.
    """
    cells = entries(paper)
    if not summary:
        print("\n".join(line(entry) for entry in cells))
    console = Console(soft_wrap=True)
    console.print(counts(cells))
    if any(entry.job is None for entry in cells):
        console.print(reasons(cells))
    here = this_machine()
    console.print(
        f"here: {here.name}, {here.bytes / 2**30:.0f} GiB.  Memory and time are estimates from the "
        "model's size, not measured; runnable: fits and ends within a day.",
        highlight=False,
    )


def line(entry: ListedCell) -> str:
    """`identity  value  needs  experiment`, or why there is no experiment."""
    cell = entry.cell
    text = f"{cell.identity}  {value(cell)}"
    if entry.job is None:
        return f"{text}  no config: {reason(cell)}"
    text += f"  {entry.job.experiment}{assumption(cell, entry.job)}"
    if entry.needs is None:
        return text
    runnable = "runnable here" if entry.runnable else "not here"
    return (
        f"{text}  {entry.needs.bytes / 2**30:.1f} GiB, "
        f"{_time(entry.needs.flops / GPU_RATE)} on an A100, "
        f"{_time(entry.needs.seconds(this_machine()))} here: {runnable}"
    )


def value(cell: Published) -> str:
    """`6.93 ± 0.01 [second-hand; rerun]`: as published, with what is to be said of it."""
    said = [*["second-hand"] * cell.second_hand, *[cell.mark] * (cell.mark != UNKNOWN)]
    spread = f" ± {cell.deviation}" if cell.deviation != UNKNOWN else ""
    return f"{cell.value}{spread}" + (f" [{'; '.join(dict.fromkeys(said))}]" if said else "")


def assumption(cell: Published, job: Job) -> str:
    """The job's choices where the source states none: ` (pruner not stated: wanda here)`."""
    open_ = {"pruner": cell.pruner, "schedule": cell.schedule}
    taken = {"pruner": job.values["pruner"], "schedule": job.schedule}
    remarks = [f"{name} not stated: {taken[name]} here" for name in open_ if open_[name] == UNKNOWN]
    return f" ({', '.join(remarks)})" if remarks and not cell.dense else ""


def reason(cell: Published) -> str:
    """The reason why no experiment repeats a cell, as far as the cell itself shows it."""
    if cell.sides is not None:
        return next((reason(side) for side in cell.sides if job_for(side) is None), "no experiment")
    measurement = measurement_of(cell)
    if measurement is None:
        return why_unmeasured(cell)
    if cell.model not in shapes():
        return f"no preset of model {cell.model}"
    groups = {"pruner": cell.pruner, "sparsity_schedule": cell.schedule, "method": cell.method}
    for group, member in groups.items():
        if member != UNKNOWN and not _exists(group, member):
            return f"no {group} {member}"
    if cell.pattern == "structured":
        return "no structured pruning"
    unstated = [name for name in ("pruner", "sparsity") if getattr(cell, name) == UNKNOWN]
    if unstated:
        return f"{' and '.join(unstated)} not stated"
    if not _exists("evaluation", measurement.evaluation):
        return f"no evaluation {measurement.evaluation}"
    return "no experiment" if cell.variant == UNKNOWN else f"no experiment of {cell.variant}"


@cache
def _exists(group: str, member: str) -> bool:
    return (conf_folder() / group / f"{member}.yaml").is_file()


def why_unmeasured(cell: Published) -> str:
    """The reason why no run measures the metric of a cell."""
    if cell.metric != PERCENT:
        return f"{cell.metric} is not a metric of a run"
    if cell.dataset == MIXED_AVERAGE:
        return f"which tasks of {cell.dataset} take acc_norm is not stated"
    return f"the tasks of {cell.dataset} are not stated"


def counts(cells: Sequence[ListedCell]) -> Table:
    """A table of the number of cells per paper.

    Columns: published, of these second-hand, with a config, runnable here.
    """
    table = Table(title="published cells")
    table.add_column("paper")
    for column in ("published", "second-hand", "with config", "runnable here"):
        table.add_column(column, justify="right")
    for paper in dict.fromkeys(entry.cell.paper for entry in cells):
        table.add_row(paper, *_count_line([e for e in cells if e.cell.paper == paper]))
    table.add_section()
    table.add_row("all", *_count_line(cells))
    return table


def reasons(cells: Sequence[ListedCell]) -> Table:
    """A table of the reasons why cells have no config, the most frequent first."""
    table = Table(title="without a config", min_width=60)
    table.add_column("reason")
    table.add_column("cells", justify="right")
    without = Counter(reason(entry.cell) for entry in cells if entry.job is None)
    rare = [why for why, count in without.items() if count < RARE]
    for why, count in without.most_common():
        if why not in rare:
            table.add_row(why, str(count))
    if rare:
        table.add_row(f"{len(rare)} other reasons", str(sum(without[why] for why in rare)))
    table.add_section()
    table.add_row("all", str(without.total()))
    return table


def command_of(identity: str, scale: str | None, overrides: Sequence[str]) -> list[str]:
    """The `sparsemend` command line that repeats a cell.

    With a scale, the model is that of the scale.  Raises OverrideError on an unknown cell,
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


def _count_line(cells: Sequence[ListedCell]) -> list[str]:
    second_hand = sum(entry.cell.second_hand for entry in cells)
    with_config = sum(entry.job is not None for entry in cells)
    runnable = sum(entry.runnable for entry in cells)
    return [str(len(cells)), str(second_hand), str(with_config), str(runnable)]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"

"""The arena as a table (terminal, Markdown, LaTeX, CSV) and as a plot of quality against cost."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparsemend.arena import ZERO_SHOT, Arena, Entry, pareto
from sparsemend.files import replacing, write_text
from sparsemend.metric_names import HARNESS, METRIC
from sparsemend.paired_bootstrap import LEVEL, RESAMPLES
from sparsemend.paper_table import Ours
from sparsemend.table_formats import latex_table, markdown_table

STEM = "arena"
HEADINGS = (
    "row",
    "perplexity",
    "x best",
    "interval",
    "zero-shot",
    "of budget",
    "trained",
    "tokens",
    "seconds",
    "peak MiB",
    "sparsity",
    "foldable",
)
COST_LABELS = {
    "seconds": "seconds of repair",
    "peak_bytes": "peak MiB of repair",
    "trained": "trained parameters",
    "tokens": "tokens read",
}
UNITS = {"peak_bytes": 2**20}
BUDGET_LABELS = {"tokens": "tokens read", "trainable": "trained parameters", "seconds": "seconds"}


def body(arena: Arena) -> list[list[str]]:
    """The dense model, then every row by perplexity, as text."""
    return [_dense(arena), *(_row(arena, entry) for entry in arena.entries)]


def notes(arena: Arena) -> list[str]:
    """Setting, budget, and what the columns say."""
    run = arena.entries[0].runs[0]
    config, seeds = run.config, sorted({s for entry in arena.entries for s in entry.seeds})
    items = (config["evaluation"].get(HARNESS) or {}).get("limit")
    found = [
        f"{run.model}, {run.member('pruner')}, sparsity {config['sparsity']}, pattern "
        f"{config['pattern']}; {run.protocol(METRIC).label}; seeds {', '.join(map(str, seeds))}",
        f"budget: {arena.amount:,.0f} {BUDGET_LABELS[arena.budget]}; a row above it is shown with "
        "its share and cannot be the best",
        "mean ± sample deviation over seeds; costs are means of the repair stage alone",
        f"x best: ratio of perplexities to {arena.best.row}, {LEVEL:.0%} interval of {RESAMPLES:,} "
        "paired resamples of seeds and test windows; * where it does not hold 1",
    ]
    if items is not None:
        found.append(f"zero-shot: mean accuracy, the first {items} items of each task only")
    if any(run.dirty for entry in arena.entries for run in entry.runs):
        found.append("some runs are of uncommitted sources")
    return found


def terminal(arena: Arena) -> Table:
    """The table for a terminal."""
    table = Table(title=f"arena, budget {arena.budget}", caption=arena_line(arena))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:1] else "right")
    for cells in body(arena):
        table.add_row(*cells, style="bold" if cells[0] == arena.best.row else None)
    return table


def show(arena: Arena) -> None:
    """Print table and notes; a log file, which has no width of its own, gets a wide one."""
    console = Console()
    console = console if console.is_terminal else Console(width=180)
    console.print(terminal(arena))
    for note in notes(arena):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def arena_line(arena: Arena) -> str:
    """Who is best, and whom that does not set apart."""
    close = [row for row, ratio in arena.ratios.items() if not ratio.differs]
    others = f"; not told apart from it: {', '.join(close)}" if close else ""
    return f"best within the budget: {arena.best.row}{others}"


def write(arena: Arena, folder: Path, cost: str) -> list[Path]:
    """arena.md, .tex, .csv, .png and .svg; the paths written."""
    left, cells, below = 1, body(arena), [*notes(arena), arena_line(arena)]
    texts = {
        f"{STEM}.md": markdown_table(f"arena, budget {arena.budget}", HEADINGS, cells, left, below),
        f"{STEM}.tex": latex_table(HEADINGS, cells, left, below),
        f"{STEM}.csv": _comma_separated(arena),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    paths = [folder / name for name in texts]
    for suffix in (".png", ".svg"):
        with replacing(folder / f"{STEM}{suffix}") as partial:
            draw(arena, partial, suffix, cost)
        paths.append(folder / f"{STEM}{suffix}")
    return paths


def draw(arena: Arena, path: Path, suffix: str, cost: str) -> None:
    """Perplexity against a cost; the Pareto front joined, dense and pruned model as lines."""
    from sparsemend.arena_plot import draw as drawn

    unit = UNITS.get(cost, 1)
    levels = {"dense": arena.dense.perplexity}
    pruned = [entry.perplexity for entry in arena.entries if entry.row == "none"]
    levels |= dict(zip(["pruned"], pruned, strict=False))
    worst = levels.get("pruned", math.inf)
    repaired = [entry for entry in arena.entries if entry.row != "none"]
    shown = [entry for entry in repaired if entry.perplexity <= worst]
    points = {entry.row: (entry.cost(cost) / unit, entry.perplexity) for entry in shown}
    deviations = {e.row: (o.deviation or 0.0) for e in shown if (o := e.ours(METRIC)) is not None}
    drawn(
        points,
        deviations,
        front=pareto(points),
        levels=levels,
        labels=(COST_LABELS[cost], METRIC),
        left_out=[
            f"{entry.row} ({_mean(entry.ours(METRIC), 1)})"
            for entry in repaired
            if entry not in shown
        ],
        path=path,
        suffix=suffix,
    )


def _dense(arena: Arena) -> list[str]:
    dense = arena.dense
    cells = ["dense", _mean(dense.ours(METRIC), 3), "-", "-", _mean(dense.ours(ZERO_SHOT), 3)]
    return [*cells, *["-"] * 5, "0.0000", "-"]


def _row(arena: Arena, entry: Entry) -> list[str]:
    ratio = arena.ratios.get(entry.row)
    over = " (over)" if not arena.within(entry) else ""
    return [
        entry.row,
        _mean(entry.ours(METRIC), 3),
        "best" if entry is arena.best else "-" if ratio is None else f"{ratio.mean:.3f}",
        "-"
        if ratio is None
        else f"{ratio.low:.3f} - {ratio.high:.3f}{'*' if ratio.differs else ''}",
        _mean(entry.ours(ZERO_SHOT), 3),
        f"{arena.share(entry):.2f}{over}",
        f"{entry.cost('trained'):,.0f}",
        f"{entry.cost('tokens'):,.0f}",
        f"{entry.cost('seconds'):.1f}",
        f"{entry.cost('peak_bytes') / 2**20:,.0f}",
        f"{entry.sparsity:.4f}",
        "yes" if entry.foldable else "no",
    ]


def _mean(ours: Ours | None, digits: int) -> str:
    if ours is None:
        return "-"
    apart = "" if ours.deviation is None else f" ± {ours.deviation:.{digits}f}"
    return f"{ours.mean:.{digits}f}{apart}"


def _comma_separated(arena: Arena) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in (arena.dense, *arena.entries):
        writer.writerow(_record(arena, entry))
    return out.getvalue()


CSV_COLUMNS = (
    *("row", "budget", "perplexity", "perplexity_deviation", "ratio", "ratio_low", "ratio_high"),
    *("zero_shot", "zero_shot_deviation", "share_of_budget", "trained", "tokens", "seconds"),
    *("peak_bytes", "sparsity", "foldable", "seeds", "best"),
)


def _record(arena: Arena, entry: Entry) -> Sequence[object]:
    ratio, dense = arena.ratios.get(entry.row), entry is arena.dense
    numbers: list[object] = []
    for metric in (METRIC, ZERO_SHOT):
        ours = entry.ours(metric)
        numbers.append("" if ours is None else ours.mean)
        numbers.append("" if ours is None or ours.deviation is None else ours.deviation)
    between = ["", "", ""] if ratio is None else [ratio.mean, ratio.low, ratio.high]
    costs = [entry.cost(name) for name in ("trained", "tokens", "seconds", "peak_bytes")]
    facts = [arena.share(entry), *costs, entry.sparsity, str(entry.foldable).lower()]
    return [
        entry.row,
        arena.budget,
        *numbers[:2],
        *between,
        *numbers[2:],
        *([""] * 7 if dense else facts),
        len(entry.runs),
        str(entry is arena.best).lower(),
    ]

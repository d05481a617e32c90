"""The arena as a table (terminal, Markdown, LaTeX, CSV) and as a plot of quality against cost."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sparsemend.files import replacing, write_text
from sparsemend.names import HARNESS, METRIC
from sparsemend.sweep.arena.interval import LEVEL
from sparsemend.sweep.arena.rows import ZERO_SHOT, Arena, ArenaRow, pareto
from sparsemend.table.formats import latex_table, markdown_table
from sparsemend.table.grouping import Ours
from sparsemend.terminal import ARENA_WIDTH, console

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
    """The cells of the table as text: the dense model, then every row by perplexity."""
    return [_dense(arena), *(_row(arena, entry) for entry in arena.entries)]


def notes(arena: Arena) -> list[str]:
    """The lines below the table: setting, budget, and the meaning of the columns."""
    runs = [run for entry in arena.entries for run in entry.runs]
    run, config = runs[0], runs[0].config
    items = (config["evaluation"].get(HARNESS) or {}).get("limit")
    target = run.result.sparsity.target
    target = config["sparsity"] if target is None else target
    lines = [
        f"{run.model}, {run.member('pruner')}, sparsity {target:g}, pattern "
        f"{config['pattern']}; {run.protocol(METRIC).label}; {_seeds(arena.seeds)}",
        f"budget: {arena.amount:,.0f} {BUDGET_LABELS[arena.budget]}; a row above it is shown with "
        "its share and cannot be the best, nor one with an open adapter",
        "mean ± sample deviation over seeds; costs are means of the repair stage alone",
        f"x best: ratio of perplexities to {arena.best.row}, {LEVEL:.0%} interval "
        f"paired over {_paired_note(len(arena.seeds))}; * where it does not hold 1",
    ]
    lines += [
        f"{entry.row}: {_seeds(entry.seeds)} alone, which cannot be the best"
        for entry in arena.entries
        if entry.seeds != arena.seeds
    ]
    methods = {entry.row: entry.runs[0].config["method"] for entry in arena.entries}
    lines += [
        f"{row}: its start reads {method['init_samples']} more windows, which its tokens leave out"
        for row, method in methods.items()
        if method.get("init") == "grad_svd"
    ]
    if run.result.peak_scope != "cuda":
        lines.append("peak: resident memory of the whole process, what earlier rows left included")
    if any(entry.partly_timed for entry in arena.entries):
        lines.append("≥: an attempt was killed within the repair, its seconds are not known")
    if items is not None:
        lines.append(f"zero-shot: mean accuracy, the first {items} items of each task only")
    if any(run.dirty for run in runs):
        lines.append("some runs are of uncommitted sources")
    if len({run.result.provenance.commit for run in runs}) > 1:
        lines.append("the runs are of several commits")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _paired_note(seeds: int) -> str:
    if seeds == 1:
        return "test windows, for one seed, which knows nothing of how seeds differ"
    return "seeds and test windows"


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
    wide = console(ARENA_WIDTH)
    wide.print(terminal(arena))
    for note in notes(arena):
        wide.print(note, markup=False, highlight=False, soft_wrap=True)


def arena_line(arena: Arena) -> str:
    """One line: the best row, the rows not told apart from it, and those not compared with it."""
    close = [row for row, ratio in arena.ratios.items() if not ratio.differs]
    without_ratio = [
        e.row for e in arena.entries if e is not arena.best and e.row not in arena.ratios
    ]
    verdict = (
        f"best within the budget: {arena.best.row}"
        if arena.eligible(arena.best)
        else f"no row may be the best; lowest perplexity: {arena.best.row}"
    )
    verdict += f"; not told apart from it: {', '.join(close)}" if close else ""
    return verdict + (
        f"; not compared with it: {', '.join(without_ratio)}" if without_ratio else ""
    )


def write(arena: Arena, folder: Path, cost: str) -> list[Path]:
    """Write arena.md, .tex, .csv, .png and .svg into `folder`; return their paths."""
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
    """Draw perplexity against a cost: the Pareto front joined, dense and pruned model as lines."""
    from sparsemend.sweep.arena.plot import draw as draw_plot

    unit = UNITS.get(cost, 1)
    perplexities = {e.row: e.perplexity for e in arena.entries}
    levels = {
        _dense_name(arena): arena.dense.perplexity,
        "pruned": perplexities.get("none", math.inf),
    }
    levels = {name: level for name, level in levels.items() if math.isfinite(level)}
    worst = levels.get("pruned", math.inf)
    repaired = [entry for entry in arena.entries if entry.row != "none"]
    shown = [e for e in repaired if math.isfinite(e.perplexity) and e.perplexity <= worst]
    points = {entry.row: (entry.cost(cost) / unit, entry.perplexity) for entry in shown}
    deviations = {e.row: (o.deviation or 0.0) for e in shown if (o := e.ours(METRIC)) is not None}
    draw_plot(
        points,
        deviations,
        front=pareto({e.row: points[e.row] for e in shown if arena.eligible(e)}),
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
    cells = [
        _dense_name(arena),
        _mean(dense.ours(METRIC), 3),
        "-",
        "-",
        _mean(dense.ours(ZERO_SHOT), 3),
    ]
    return [*cells, *["-"] * 5, "0.0000" if cells[0] == "dense" else "-", "-"]


def _dense_name(arena: Arena) -> str:
    """The name of the dense row: `as loaded` where the checkpoint was pruned already."""
    return "as loaded" if arena.dense.runs[0].member("pruner") == "existing" else "dense"


def _row(arena: Arena, entry: ArenaRow) -> list[str]:
    ratio = arena.ratios.get(entry.row)
    over = " (over)" if not arena.within(entry) else ""
    return [
        entry.row,
        _mean(entry.ours(METRIC), 3),
        _against_best(arena, entry),
        "-"
        if ratio is None
        else f"{ratio.low:.3f} - {ratio.high:.3f}{'*' if ratio.differs else ''}",
        _mean(entry.ours(ZERO_SHOT), 3),
        f"{arena.share(entry):.2f}{over}",
        f"{entry.cost('trained'):,.0f}",
        f"{entry.cost('tokens'):,.0f}",
        f"{'≥ ' if entry.partly_timed else ''}{entry.cost('seconds'):.1f}",
        f"{entry.cost('peak_bytes') / 2**20:,.0f}",
        f"{entry.sparsity:.4f}",
        "yes" if entry.foldable else "no",
    ]


def _against_best(arena: Arena, entry: ArenaRow) -> str:
    if entry is arena.best:
        return "best" if arena.eligible(entry) else "lowest"
    ratio = arena.ratios.get(entry.row)
    return "-" if ratio is None else f"{ratio.mean:.3f}"


def _mean(ours: Ours | None, digits: int) -> str:
    if ours is None:
        return "-"
    deviation = "" if ours.deviation is None else f" ± {ours.deviation:.{digits}f}"
    return f"{ours.mean:.{digits}f}{deviation}"


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


def _record(arena: Arena, entry: ArenaRow) -> Sequence[object]:
    ratio, dense = arena.ratios.get(entry.row), entry is arena.dense
    numbers: list[object] = []
    for metric in (METRIC, ZERO_SHOT):
        ours = entry.ours(metric)
        numbers.append("" if ours is None else ours.mean)
        numbers.append("" if ours is None or ours.deviation is None else ours.deviation)
    ratio_cells = ["", "", ""] if ratio is None else [ratio.mean, ratio.low, ratio.high]
    costs = [entry.cost(name) for name in ("trained", "tokens", "seconds", "peak_bytes")]
    facts = [arena.share(entry), *costs, entry.sparsity, str(entry.foldable).lower()]
    return [
        entry.row,
        arena.budget,
        *numbers[:2],
        *ratio_cells,
        *numbers[2:],
        *([""] * 7 if dense else facts),
        len(entry.runs),
        str(entry is arena.best).lower(),
    ]

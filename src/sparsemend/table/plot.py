"""Draw a paper table: one line per row, our numbers as dots with deviations, theirs as rings."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparsemend.table.formats import models
from sparsemend.table.paper_table import Line, PaperTable
from sparsemend.table.published import UNKNOWN

matplotlib.rcParams["svg.hashsalt"] = "sparsemend"  # equal tables give equal files
COLOURS = ("#2a6fbb", "#c4512d", "#2f8f5b", "#8a5fb5", "#a07b16", "#4d4d4d")
WIDE = 8.0  # ratio of largest to smallest value from which the axis is logarithmic


def draw(table: PaperTable, path: Path, suffix: str) -> None:
    """Write the picture as .png or .svg, whatever the path is called."""
    labels = list(dict.fromkeys(_label(line) for line in table.lines))
    fig, axes = plt.subplots(figsize=(8, 1.3 + 0.32 * len(labels)), layout="constrained")
    for colour, model in zip(COLOURS * len(models(table)), models(table), strict=False):
        _points(axes, [k for k in table.lines if k.model == model], labels, colour)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    protocol = table.lines[0].protocol
    axes.set_xlabel(f"{table.metric}, {protocol.text}, {protocol.seqlen} tokens")
    values = [line.ours.mean for line in table.lines]
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(table.title, loc="left", fontsize=11)
    columns = 2 * len(models(table))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, fontsize=8, frameon=False)
    stable = {"Date": None} if suffix == ".svg" else None
    fig.savefig(path, format=suffix[1:], dpi=144, metadata=stable)
    plt.close(fig)


def _points(axes: Axes, lines: list[Line], labels: list[str], colour: str) -> None:
    heights = [labels.index(_label(line)) for line in lines]
    deviations = [line.ours.deviation or 0.0 for line in lines]
    means = [line.ours.mean for line in lines]
    axes.errorbar(
        means,
        heights,
        xerr=deviations,
        fmt="o",
        ms=5,
        color=colour,
        capsize=2,
        label=f"{lines[0].model}, ours",
    )
    theirs = [
        (line.theirs.number, height)
        for line, height in zip(lines, heights, strict=True)
        if line.comparable and line.theirs and line.theirs.number is not None
    ]
    if theirs:
        x, y = zip(*theirs, strict=True)
        axes.plot(x, y, "o", ms=9, mfc="none", color=colour, label=f"{lines[0].model}, published")


def _label(line: Line) -> str:
    row = line.row
    amount = "" if row.pruner == "none" else f"{row.amount}  "
    variant = "" if row.variant == UNKNOWN else f" ({row.variant})"
    setting = f"  {line.settings}" if line.settings else ""
    return f"{amount}{row.label}{variant}{setting}"

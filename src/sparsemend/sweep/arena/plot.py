"""Plot quality against cost: points with deviations, the Pareto front, labels that stay apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

matplotlib.rcParams["svg.hashsalt"] = "sparsemend"  # equal tables give equal files
FRONT, OTHER = "#c4512d", "#2a6fbb"
WIDE = 5.0  # ratio of largest to smallest value from which an axis is logarithmic
TITLE = 95  # characters that fit above the axes
LINE = 0.042  # height of a label in the margin, as a fraction of the axes


def draw(
    points: Mapping[str, tuple[float, float]],
    deviations: Mapping[str, float],
    *,
    front: Sequence[str],
    levels: Mapping[str, float],
    labels: tuple[str, str],
    left_out: Sequence[str],
    path: Path,
    suffix: str,
) -> None:
    """Write the picture as .png or .svg, whatever the path is called.

    points: (cost, value) by row.  levels: values of models without a cost, drawn as lines.
    left_out: rows that are only named.
    """
    fig, axes = plt.subplots(figsize=(8.2, 5), layout="constrained")
    for colour, rows in ((FRONT, front), (OTHER, [row for row in points if row not in front])):
        pairs = [points[row] for row in rows]
        if pairs:
            x, y = zip(*pairs, strict=True)
            errors = [deviations[row] for row in rows]
            axes.errorbar(x, y, yerr=errors, fmt="o", ms=5, color=colour, capsize=2, lw=1)
    if front:
        axes.plot(*zip(*(points[row] for row in front), strict=True), "-", color=FRONT, lw=1.2)
    for name, level in levels.items():
        axes.axhline(level, color="#777777", lw=0.9, ls=":" if name == "dense" else "--")
        place = (0.01, level)
        across = axes.get_yaxis_transform()
        axes.text(*place, name, transform=across, va="bottom", fontsize=8.5, color="#555555")
    values = [value for _, value in points.values()] + list(levels.values())
    _scale(axes, "x", [cost for cost, _ in points.values()])
    _scale(axes, "y", values)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(f"{labels[1]} (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    title = "red: Pareto front, no row that keeps to the budget is better and cheaper"
    if left_out:
        remark = f"not drawn, not better than pruned: {', '.join(left_out)}"
        title = "\n".join([title, *wrap(remark, TITLE)])
    axes.set_title(title, loc="left", fontsize=10)
    fig.canvas.draw()  # limits are final, so that labels can be placed
    _label(axes, points, front)
    stable = {"Date": None} if suffix == ".svg" else None
    fig.savefig(path, format=suffix[1:], dpi=144, metadata=stable)
    plt.close(fig)


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    if not values or min(values) <= 0 or max(values) / min(values) <= WIDE:
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, points: Mapping[str, tuple[float, float]], front: Sequence[str]) -> None:
    """Write the names into the right margin, by height, and join them to their points."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = {row: to_axes.transform(point) for row, point in points.items()}
    heights = spread({name: float(place[1]) for name, place in places.items()}, LINE)
    for name, (x, y) in places.items():
        colour = FRONT if name in front else OTHER
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.03, heights[name]),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.6, "shrinkB": 3},
        )


def spread(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move heights at least `gap` apart, none below 0, in the same order.

    Each group of heights that had to move stays centred on its mean, where that is not too low.
    """
    groups: list[tuple[list[str], float]] = []  # names from below, middle
    for name in sorted(heights, key=lambda n: heights[n]):
        names, middle = [name], heights[name]
        while groups:
            below, centre = groups[-1]
            if middle - centre >= gap * (len(names) + len(below)) / 2:
                break
            groups.pop()
            names, count = [*below, *names], len(below) + len(names)
            middle = sum(heights[n] for n in names) / count
        groups.append((names, max(middle, gap * (len(names) - 1) / 2)))
    return {
        name: middle + gap * (place - (len(names) - 1) / 2)
        for names, middle in groups
        for place, name in enumerate(names)
    }

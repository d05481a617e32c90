"""A picture of a claim: every comparison as a point with its interval, the paper's beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparsemend.sweep.claims.claim import Comparison, Judged
from sparsemend.sweep.claims.verdict import FAILS, HOLDS, OPEN

COLOURS = {HOLDS: "#2a7f3f", FAILS: "#c4512d", OPEN: "#7a7a7a"}
LINE = 0.24  # inches a comparison takes
NEAR, FAR = 2.0, 30.0  # ratios of the axis's ends: from the first logarithmic, by decades
BEYOND = 10.0  # how far beyond ours a published ratio may widen the axis; the page has all


def draw(judged: Sequence[Judged], path: Path) -> None:
    """Write the picture as .png: a panel per statement and text, a line per setting."""
    panels = [one for one in judged if one.comparisons]
    heights = [len(one.comparisons) + 1.6 for one in panels]
    size = (8.6, 0.7 + LINE * sum(heights) + 0.35 * len(panels))
    figure, grid = plt.subplots(
        len(panels),
        1,
        figsize=size,
        layout="constrained",
        squeeze=False,
        sharex=True,
        height_ratios=heights,
    )
    first, last = _range(panels)
    for one, axes in zip(panels, grid[:, 0], strict=True):
        for place, comparison in enumerate(one.comparisons):
            _line(axes, place, comparison, one.statement.at_most)
        axes.axvline(one.statement.at_most, color="#333333", lw=0.9)
        axes.set_yticks(range(len(one.comparisons)), labels(one.comparisons))
        axes.set_ylim(len(one.comparisons) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.set_title(f"{one.statement.says}  ({one.text})", loc="left", fontsize=9.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
    low = grid[-1, 0]
    low.set_xlim(first, last)
    if last / first > NEAR:
        low.set_xscale("log")
        subs = (1, 1.5, 2, 3, 5, 7) if last / first < FAR else (1,)
        low.xaxis.set_major_locator(LogLocator(subs=subs))
        low.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low.xaxis.set_minor_formatter(NullFormatter())
    low.set_xlabel("ours / rival, 95 % interval (left of the line: as the paper says)", fontsize=9)
    figure.legend(
        handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
    )
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)


def labels(comparisons: Sequence[Comparison]) -> list[str]:
    """What the settings are called, without a machine that is that of all; the page names it."""
    settings = [c.setting for c in comparisons]
    if len({setting.machine for setting in settings}) == 1:
        settings = [replace(setting, machine="") for setting in settings]
    return [setting.label for setting in settings]


def _range(panels: Sequence[Judged]) -> tuple[float, float]:
    """The ends of the axis: all intervals and bounds, and published ratios that are not far off."""
    comparisons = [comparison for one in panels for comparison in one.comparisons]
    effects = [c.effect for c in comparisons if c.effect is not None]
    values = [e for effect in effects for e in (effect.low, effect.high)]
    values += [one.statement.at_most for one in panels]
    low, high = min(values), max(values)
    published = [c.published.ratio for c in comparisons if c.published is not None]
    values += [ratio for ratio in published if low / BEYOND <= ratio <= high * BEYOND]
    low, high = min(values), max(values)
    margin = (high / low) ** 0.04
    return low / margin, high * margin


def _line(axes: plt.Axes, place: int, comparison: Comparison, bound: float) -> None:
    effect, colour = comparison.effect, COLOURS[comparison.verdict]
    if effect is None:
        axes.text(bound, place, " collapsed", color=colour, va="center", fontsize=8.5)
    else:
        axes.plot([effect.low, effect.high], [place, place], "-", color=colour, lw=2.2)
        axes.plot([effect.mean], [place], "o", color=colour, ms=5)
    if comparison.published is not None:
        axes.plot([comparison.published.ratio], [place], "D", mfc="none", mec="#2a6fbb", ms=6)


def _legend() -> list[Line2D]:
    points = [
        Line2D([], [], marker="o", ls="-", color=colour, label=text)
        for text, colour in COLOURS.items()
    ]
    paper = Line2D(
        [], [], marker="D", ls="", mfc="none", mec="#2a6fbb", label="published, other model"
    )
    return [*points, paper]

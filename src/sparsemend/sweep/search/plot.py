"""The plot of a search: perplexity against the searched key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemend.sweep.read import Cell

PLOT = "search"


@dataclass(frozen=True)
class Point:
    """One finished trial."""

    cell: Cell
    value: Any  # of the searched key
    test: float
    validation: float  # NaN where it was not measured

    def objective(self, select_on: str) -> float:
        """The perplexity that is minimised; infinite where it is not finite."""
        value = self.test if select_on == "test" else self.validation
        return value if math.isfinite(value) else math.inf


def plot(points: Sequence[Point], best: Point, search: Mapping[str, Any], folder: Path) -> None:
    """Write search.png and search.svg: perplexity against the key, the baseline as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in (("validation", "tab:blue"), ("test", "tab:orange")):
        pairs = [(p.value, getattr(p, name)) for p in points if math.isfinite(getattr(p, name))]
        if not pairs:
            continue
        axes.plot(*zip(*pairs, strict=True), "o-", color=colour, label=name, markersize=4)
        level = next((y for x, y in pairs if x == search["baseline"]), None)
        if level is not None:
            axes.axhline(level, color=colour, linestyle=":", linewidth=1)
    axes.axvline(best.value, color="grey", linewidth=1, label=f"best by {search['select_on']}")
    axes.set_xlabel(search["key"].split(".")[-1].replace("_", " "))
    dotted = "" if search["baseline"] is None else f" (dotted: {search['baseline']:g})"
    axes.set_ylabel(f"perplexity{dotted}")
    finite = [p.objective(search["select_on"]) for p in points]
    if max(f for f in finite if math.isfinite(f)) > 10 * min(finite):
        axes.set_yscale("log")
    if search["log"]:
        axes.set_xscale("log")
    axes.legend(frameon=False)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{PLOT}.{suffix}", dpi=110)

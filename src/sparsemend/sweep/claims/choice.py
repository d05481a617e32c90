"""Choose a value by validation, and say what choosing by the test text would have gained.

Values are tried on one seed; the value of the lowest validation perplexity counts for all seeds,
on ties the smaller one.  A bracket starts at a row's own value and goes on by a factor in the
direction that helps, until the value on each side of the best one is worse; where no trial is
finite yet it goes lower.  A spread goes up from its lowest value, and may end where some in a row
are worse than the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

BRACKET = "bracket"
SPREAD = "spread"
MOST = 8  # trials of a bracket: two that begin it, and six steps outwards (a factor of 729)


def best_value(objectives: Mapping[float, float]) -> float | None:
    """The value with the least objective that is finite, the smaller one on ties; None without."""
    finite = {value: o for value, o in objectives.items() if math.isfinite(o)}
    return min(sorted(finite), key=lambda value: finite[value]) if finite else None


def bracket(
    start: float, factor: float, objective: Callable[[float], float], *, most: int
) -> dict[float, float]:
    """Objectives of start * factor^k, tried until the best lies between two that are not better.

    `objective` gives infinity for a failed trial, which is worse than any that ended.  most: trials
    at which it ends in any case; the best may then lie `at_edge`.
    """

    def at(k: int) -> float:
        return float(f"{start * factor**k:.6g}")  # no digits that only rounding made

    tried = {k: objective(at(k)) for k in (0, -1)}
    while len(tried) < most:
        best = min(sorted(tried), key=lambda k: tried[k])  # the lowest where none is finite
        edge = next((k for k in (best - 1, best + 1) if k not in tried), None)
        if edge is None:
            break
        tried[edge] = objective(at(edge))
    return {at(k): tried[k] for k in sorted(tried)}


@dataclass(frozen=True)
class TrialRule:
    """Which values are tried, as `hydra.sweeper.choose` says.

    points: BRACKET, SPREAD of `count` values up to a bound, or a list.
    stop_after: how many values of a spread may be worse than the best in a row before it ends; None
    for all.
    """

    points: str | tuple[float, ...]
    count: int | None = None
    stop_after: int | None = None

    def at_edge(self, value: float, objectives: Mapping[float, float]) -> bool:
        """Whether no value below it, or none above, was tried; a failed trial was tried too.

        A spread has no upper edge: what lies above its last value is not legal, or was given up.
        """
        return value == min(objectives) or (value == max(objectives) and self.points != SPREAD)

    def are_over(self, objectives: Mapping[float, float]) -> bool:
        """Whether a choice had all its trials."""
        value = best_value(objectives)
        if self.points == BRACKET:
            inside = value is not None and not self.at_edge(value, objectives)
            return inside or len(objectives) >= MOST
        if self.points == SPREAD:
            return len(objectives) >= (self.count or 1) or self.give_up(objectives)
        return all(point in objectives for point in self.points)

    def give_up(self, objectives: Mapping[float, float]) -> bool:
        """Whether so many values above the best are worse that a spread ends there."""
        value = best_value(objectives)
        if self.stop_after is None or value is None:
            return False
        return sum(other > value for other in objectives) >= self.stop_after

    def try_each(
        self, values: Sequence[float], objective: Callable[[float], float]
    ) -> dict[float, float]:
        """Objectives of the values, each tried once, in their order."""
        tried: dict[float, float] = {}
        for value in dict.fromkeys(values):
            if self.points == SPREAD and self.give_up(tried):
                break
            tried[value] = objective(value)
        return tried


def between(objectives: Mapping[float, float]) -> tuple[float, float] | None:
    """Where a parabola through the best value and its neighbours is lowest, and its ratio there.

    Of the logarithms of values and objectives.  The ratio is of the objective there over that of
    the best: what a finer grid could gain, by an estimate.  None at an edge, beside a value whose
    objective is not finite, and where a logarithm does not exist.
    """
    value, values = best_value(objectives), sorted(objectives)
    if value is None or value in (values[0], values[-1]):
        return None
    k = values.index(value)
    three = values[k - 1 : k + 2]
    if three[0] <= 0 or not all(0 < objectives[v] < math.inf for v in three):
        return None
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(v), math.log(objectives[v])) for v in three)
    left, right = (y0 - y1) / (x0 - x1), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    if bend <= 0:  # ties
        return None
    slope = left + bend * (x1 - x0)  # at the best value
    return math.exp(x1 - slope / (2 * bend)), math.exp(-(slope**2) / (4 * bend))

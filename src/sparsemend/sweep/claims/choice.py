"""Choose a value by validation, and say what choosing by the test text would have gained.

Values are tried on one seed; the value of the lowest validation perplexity counts for all seeds,
on ties the smaller one.  A bracket starts at a row's own value and goes on by a factor in the
direction that helps, until the value on each side of the best one is worse; where no trial is
finite yet it goes lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

BRACKET = "bracket"
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


def at_edge(value: float, objectives: Mapping[float, float]) -> bool:
    """Whether no value below it, or none above, was tried; a failed trial was tried too."""
    return value in (min(objectives), max(objectives))


def is_settled(
    objectives: Mapping[float, float], points: str | Sequence[float], count: int | None
) -> bool:
    """Whether a choice had all its trials.

    points, count: of `hydra.sweeper.choose`: a bracket, a spread of `count` values, or a list.
    """
    if points == BRACKET:
        value = best_value(objectives)
        inside = value is not None and not at_edge(value, objectives)
        return inside or len(objectives) >= MOST
    if isinstance(points, str):
        return len(objectives) >= (count or 1)
    return all(value in objectives for value in points)


def try_each(values: Sequence[float], objective: Callable[[float], float]) -> dict[float, float]:
    """Objectives of the values, each tried once, in their order."""
    return {value: objective(value) for value in dict.fromkeys(values)}

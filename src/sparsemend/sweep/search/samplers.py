"""Optuna samplers that a one-dimensional search needs and Optuna does not have.

`ListedSampler` tries points in their order; `GoldenSampler` narrows an interval by golden section,
which finds the minimum of a unimodal curve with one evaluation per step:

    x1 = b - g (b - a),  x2 = a + g (b - a),  g = (sqrt(5) - 1) / 2;   b := x2 if f(x1) <= f(x2)
    else a := x1, and the inner point that is left serves again (Kiefer 1953).

Both read the study alone, so that a search which was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from sparsemend.sweep.search.space import Interval, Listed, Space

GOLDEN = (math.sqrt(5) - 1) / 2


class OneKey(BaseSampler):
    """The shared base of both: a trial's value is a function of the trials before it.

    lost: numbers of the failed trials of earlier sessions that are tried again.
    """

    def __init__(self, *, lost: frozenset[int]) -> None:
        self.lost = lost

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def finished_trials(
        self, study: Study, trial: FrozenTrial, key: str
    ) -> list[tuple[Any, float]]:
        """(value of the key, objective) of the trials that count.

        The objective is infinite where a trial has none.
        """
        outcomes = []
        for other in study.get_trials(deepcopy=False):
            counts = other.number not in self.lost and other.number != trial.number
            if counts and key in other.params:
                objective = other.value if other.state == TrialState.COMPLETE else None
                outcomes.append((other.params[key], math.inf if objective is None else objective))
        return outcomes


class ListedSampler(OneKey):
    """Proposes the first of the listed points that no trial has tried."""

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        assert isinstance(distribution, CategoricalDistribution)
        tried = [value for value, _ in self.finished_trials(study, trial, name)]
        left = [point for point in distribution.choices if point not in tried]
        return left[0] if left else distribution.choices[-1]


class GoldenSampler(OneKey):
    """Proposes the next point of a golden section of the interval."""

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> float:
        assert isinstance(distribution, FloatDistribution)
        return next_golden(
            distribution.low, distribution.high, dict(self.finished_trials(study, trial, name))
        )


def next_golden(low: float, high: float, objectives: Mapping[float, float]) -> float:
    """The next point to evaluate in [low, high], given objectives of earlier ones.

    Equal objectives narrow to the lower side; an infinite one (a failed trial) is left behind.
    """
    near = 1e-9 * (high - low)  # a point that serves again is recomputed, with another rounding
    while True:
        inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
        values = [_value_at(point, objectives, near) for point in inner]
        for point, value in zip(inner, values, strict=True):
            if value is None or high - low <= 2 * near:
                return point
        left, right = values
        assert left is not None
        assert right is not None
        low, high = (low, inner[1]) if left <= right else (inner[0], high)


def _value_at(point: float, objectives: Mapping[float, float], near: float) -> float | None:
    return next((f for x, f in objectives.items() if abs(x - point) <= near), None)


def make_sampler(space: Space, *, since: int, lost: frozenset[int]) -> BaseSampler:
    """The sampler that a space asks for.

    since: number of the first trial of this session; lost: as those of `OneKey`.
    """
    if space.sampler == "listed":
        return ListedSampler(lost=lost)
    if space.sampler == "golden":
        return GoldenSampler(lost=lost)
    assert isinstance(space.values, Interval)
    # a resumed study has trials behind it; the seed moves on, or it would propose them again
    startup = max(2, space.values.trials // 3)
    return TPESampler(seed=space.seed + since, n_startup_trials=startup, constant_liar=True)


def suggest(space: Space, trial: Trial) -> None:
    """Let the study's sampler choose the key's value for one trial."""
    values = space.values
    if isinstance(values, Listed):
        trial.suggest_categorical(space.key, choices(values.points))
    else:
        trial.suggest_float(space.key, values.low, values.high, log=values.log)


def choices(points: Sequence[Any]) -> list[Any]:
    """The points in the types that Optuna stores; None as a command line has it, others as text."""
    return [
        "null" if p is None else p if isinstance(p, str | int | float | bool) else str(p)
        for p in points
    ]

"""One side of a comparison in one setting: a measured state per seed, what was chosen for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemend.config.values import leaves
from sparsemend.names import VALIDATION_METRIC
from sparsemend.sweep.arena.interval import Ratio
from sparsemend.sweep.claims.choice import TrialRule, best_value, between
from sparsemend.sweep.claims.equality import check_same, check_side
from sparsemend.sweep.claims.facts import ComparedAt, MeasuredState
from sparsemend.sweep.claims.statements import Rules
from sparsemend.sweep.claims.verdict import effect_of

BySeed = Mapping[int, MeasuredState]


@dataclass(frozen=True)
class Chosen:
    """What validation chose for a side, and what the test text would have chosen."""

    side: str
    setting: ComparedAt
    key: str
    validation: Mapping[float, float]  # value -> perplexity, on the seed where values were tried
    value: float
    by_test: float
    gap: Ratio | None  # test perplexity of `value` over that of `by_test`
    seconds: float  # of all trials
    trial_rule: TrialRule

    @property
    def at_edge(self) -> bool:
        """Whether a better value may lie beyond those that were tried."""
        return self.trial_rule.at_edge(self.value, self.validation)

    @property
    def between(self) -> tuple[float, float] | None:
        """As `choice.between`: a value between those that were tried, and what it could gain."""
        return between(self.validation)


@dataclass(frozen=True)
class Side:
    """A side in one setting; `earlier`: cells of the same configuration that later ones replace."""

    name: str
    by_seed: BySeed
    chosen: Chosen | None
    earlier: tuple[MeasuredState, ...]

    def logarithms(self, measure: str) -> dict[int, np.ndarray]:
        """The logarithm of a measure (W,) by seed, of the seeds that have a finite one."""
        by_seed = {seed: state.logarithms(measure) for seed, state in self.by_seed.items()}
        return {seed: values for seed, values in by_seed.items() if values is not None}

    def collapsed_seeds(self, measure: str) -> frozenset[int]:
        """The seeds on which the model collapsed."""
        return frozenset(s for s, state in self.by_seed.items() if state.has_collapsed(measure))

    def weights(self, measure: str) -> np.ndarray | None:
        """How much each test window (W,) counts, which is the same for all runs on a text."""
        read = (state.weights(measure) for state in self.by_seed.values())
        return next((weights for weights in read if weights is not None), None)


def side_of(
    name: str, setting: ComparedAt, members: Sequence[MeasuredState], rules: Rules, metric: str
) -> Side:
    """The states `members`, in the order in which they were made, as one side of a setting.

    Of several values of the chosen key that counts which validation chooses; of cells with one
    configuration the last.  metric: of the test windows, by which the choice is judged.
    """
    by_value: dict[Any, dict[int, MeasuredState]] = {}
    earlier = []
    for state in members:
        by_seed = by_value.setdefault(value_of(state, rules.chosen_key), {})
        if (before := by_seed.get(state.run.seed)) is not None:
            check_same(before, state)
            earlier.append(before)
        by_seed[state.run.seed] = state
    check_side(members, but_for=rules.chosen_key)
    if len(by_value) == 1:
        return Side(name, next(iter(by_value.values())), None, tuple(earlier))
    tried = {v: s[rules.chosen_on] for v, s in by_value.items() if rules.chosen_on in s}
    chosen = _choose(name, setting, tried, rules, metric)
    if chosen is None:
        return Side(name, _collapsed_trials(by_value, metric), None, ())
    kept = (state for state in earlier if value_of(state, rules.chosen_key) == chosen.value)
    return Side(name, by_value[chosen.value], chosen, tuple(kept))


def _collapsed_trials(by_value: Mapping[Any, BySeed], metric: str) -> BySeed:
    """A collapsed trial of each seed that has one, where no value has a finite validation."""
    return {
        seed: state
        for states in by_value.values()
        for seed, state in states.items()
        if state.has_collapsed(metric)
    }


def value_of(state: MeasuredState, key: str | None) -> Any:
    """The value of the chosen key in a run; None where the state does not depend on it."""
    if key is None or (state.state == "pruned" and key.startswith("method.")):
        return None
    return dict(leaves(state.run.config)).get(key)


def _choose(
    name: str, setting: ComparedAt, tried: Mapping[Any, MeasuredState], rules: Rules, metric: str
) -> Chosen | None:
    """The choice among the trials; None where none has a finite validation."""
    validation = {value: validation_of(state) for value, state in tried.items()}
    value = best_value(validation)
    if value is None:
        return None
    by_test = best_value({v: _metric(state, metric) for v, state in tried.items()})
    by_test = value if by_test is None else by_test
    windows = [tried[v].logarithms(metric) for v in (value, by_test)]
    pair = [{0: losses} for losses in windows if losses is not None]
    gap = effect_of(pair[0], pair[1], tried[value].weights(metric)) if len(pair) == 2 else None
    return Chosen(
        side=name,
        setting=setting,
        key=str(rules.chosen_key),
        validation=dict(sorted(validation.items())),
        value=value,
        by_test=by_test,
        gap=gap[0] if gap else None,
        seconds=sum(state.run.result.seconds or 0.0 for state in tried.values()),
        trial_rule=rules.trial_rule,
    )


def validation_of(state: MeasuredState) -> float:
    """The validation perplexity of a repaired state, infinite where it has none."""
    return _metric(state, VALIDATION_METRIC)


def _metric(state: MeasuredState, name: str) -> float:
    value = state.run.value("repaired", name) if state.run.result.finished else None
    return math.inf if value is None else value

"""Compare the sides of a statement in every setting, and judge it over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsemend.names import METRIC
from sparsemend.sweep.claims.claim import Comparison, Judged, KeptGain
from sparsemend.sweep.claims.equality import check_sides
from sparsemend.sweep.claims.facts import ComparedAt, MeasuredState
from sparsemend.sweep.claims.planned import CellCount
from sparsemend.sweep.claims.published import published_ratio
from sparsemend.sweep.claims.side import Side, side_of, value_of
from sparsemend.sweep.claims.statements import PER_WINDOW, Rules, Statement
from sparsemend.sweep.claims.verdict import (
    Logarithms,
    effect_of,
    overall,
    pooled_effect,
    verdict,
    with_collapses,
)


def compare(
    statement: Statement, states: Sequence[MeasuredState], rules: Rules
) -> list[Comparison]:
    """The statement in every setting that has both sides, in the order of settings."""
    ours, rival, bound = (
        _sides(conditions, statement.measure, states, rules)
        for conditions in (statement.ours, statement.rival, statement.share_of)
    )
    comparisons = [
        _compare(statement, setting, ours[setting], rival[setting], bound.get(setting))
        for setting in sorted(ours.keys() & rival.keys())
    ]
    return [c for c in comparisons if c.effect is not None or c.collapsed or c.rival_collapsed]


def missing_of(statement: Statement, states: Sequence[MeasuredState]) -> str:
    """Why a statement has no comparison: `not measured yet: no cell of row=lors`."""
    sides = (statement.ours, statement.rival)
    absent = [
        " and ".join(f"{key}={value}" for key, value in side.items())
        for side in sides
        if not any(s.meets(side) and s.was_measured(statement.measure) for s in states)
    ]
    reason = f"no cell of {', none of '.join(absent)}"
    if not absent:
        needed = "one seed" if statement.measure in PER_WINDOW else "two seeds"
        reason = f"no setting has both on {needed}"
    return f"not measured yet: {reason}"


def _sides(
    conditions: Mapping[str, Any] | None,
    measure: str,
    states: Sequence[MeasuredState],
    rules: Rules,
) -> dict[ComparedAt, Side]:
    """The side that meets the conditions, by setting; empty without conditions.

    What is chosen is chosen by perplexity, over the cells of all machines, also for a cost.
    """
    metric = measure if measure in PER_WINDOW else METRIC
    by_setting: dict[ComparedAt, list[MeasuredState]] = {}
    for state in states if conditions is not None else ():
        if state.meets(conditions or {}) and state.was_measured(metric):
            by_setting.setdefault(state.setting(metric), []).append(state)
    sides = [
        side_of(_name(conditions or {}), setting, _of_choice(members, rules), rules, metric)
        for setting, members in by_setting.items()
    ]
    if measure == metric:
        return dict(zip(by_setting, sides, strict=True))
    return {setting: part for side in sides for setting, part in _by_machine(side, measure).items()}


def _of_choice(members: list[MeasuredState], rules: Rules) -> list[MeasuredState]:
    """The states at values that a list of the rules holds; all of a row that has none of them."""
    values = [value_of(state, rules.chosen_key) for state in members]
    listed = rules.of_the_list(values)
    pairs = zip(members, values, strict=True)
    return [state for state, value in pairs if not listed or value is None or value in listed]


def _by_machine(side: Side, measure: str) -> dict[ComparedAt, Side]:
    """A side by what its cost was measured on, of the seeds that have one."""
    by_setting: dict[ComparedAt, dict[int, MeasuredState]] = {}
    for seed, state in side.by_seed.items():
        if state.was_measured(measure):
            by_setting.setdefault(state.setting(measure), {})[seed] = state
    return {
        setting: Side(side.name, by_seed, side.chosen, ())
        for setting, by_seed in by_setting.items()
    }


def _name(conditions: Mapping[str, Any]) -> str:
    """What a side is called: `atp`, `seft, grow_scope=active`."""
    of_itself = ("row", "method", "schedule", "variant")
    names = [str(v) for k, v in conditions.items() if k in of_itself]
    rest = [f"{k.rpartition('.')[2]}={v}" for k, v in conditions.items() if "." in k]
    return ", ".join([*names, *rest])


def _compare(
    statement: Statement, setting: ComparedAt, ours: Side, rival: Side, bound: Side | None
) -> Comparison:
    measure = statement.measure
    sides = [side for side in (ours, rival, bound) if side is not None]
    check_sides([state for side in sides for state in side.by_seed.values()])
    seeds = ours.by_seed.keys() & rival.by_seed.keys()
    fell, rival_fell = (side.collapsed_seeds(measure) & seeds for side in (ours, rival))
    outcome = effect_of(*_pair(ours, rival, measure), ours.weights(measure))
    effect, compared = outcome if outcome is not None else (None, ())
    judged = None if effect is None else verdict(effect, statement.at_most)
    return Comparison(
        setting=setting,
        ours=ours,
        rival=rival,
        effect=effect,
        seeds=compared,
        collapsed=tuple(sorted(fell)),
        rival_collapsed=tuple(sorted(rival_fell)),
        verdict=with_collapses(judged, ours=len(fell - rival_fell), rival=len(rival_fell - fell)),
        published=published_ratio(statement, setting),
        gain=None if bound is None else _gain(statement, ours, rival, bound),
        bound=bound,
    )


def _pair(ours: Side, rival: Side, measure: str) -> tuple[Logarithms, Logarithms]:
    """The logarithms of both sides, without the seeds on which both collapsed."""
    nothing = ours.collapsed_seeds(measure) & rival.collapsed_seeds(measure)
    first, second = (
        {s: values for s, values in side.logarithms(measure).items() if s not in nothing}
        for side in (ours, rival)
    )
    return first, second


def _gain(statement: Statement, ours: Side, rival: Side, bound: Side) -> KeptGain | None:
    """How much of what `bound` gains over the rival ours keeps; None where nothing compares.

    At least the share s is kept where log ours <= (1 - s) log rival + s log bound.
    """
    measure, share = statement.measure, statement.share
    assert share is not None
    logs = [side.logarithms(measure) for side in (ours, rival, bound)]
    seeds = set.intersection(*(set(by_seed) for by_seed in logs))
    first, second, third = ({s: by_seed[s] for s in seeds} for by_seed in logs)
    goal = {s: (1 - share) * second[s] + share * third[s] for s in seeds}
    weights = ours.weights(measure)
    outcomes = [
        effect_of(side, against, weights)
        for side, against in ((third, second), (first, second), (first, goal))
    ]
    effects = [outcome[0] for outcome in outcomes if outcome is not None]
    if len(effects) < 3:
        return None
    of_bound, of_ours, over_goal = effects
    kept = float(np.log(of_ours.mean) / np.log(of_bound.mean)) if of_bound.high < 1 else None
    judged = None if kept is None else verdict(over_goal, 1.0)
    return KeptGain(bound.name, share, of_bound, kept, over_goal, judged)


def judge(
    statement: Statement,
    place: tuple[str, str],
    comparisons: Sequence[Comparison],
    progress: CellCount,
) -> Judged:
    """The statement over all its settings on one model and text."""
    measure = statement.measure
    numbers = [c for c in comparisons if c.effect is not None]
    pairs = [_pair(c.ours, c.rival, measure) for c in numbers]
    pooled = pooled_effect(pairs, numbers[0].ours.weights(measure)) if numbers else None
    effect, seeds = pooled if pooled is not None else (None, ())
    judged = None if effect is None else verdict(effect, statement.at_most)
    alone = [(set(c.collapsed), set(c.rival_collapsed)) for c in comparisons]
    if judged is not None:
        judged = with_collapses(
            judged,
            ours=_count(ours - rival for ours, rival in alone),
            rival=_count(rival - ours for ours, rival in alone),
        )
    return Judged(
        statement=statement,
        model=place[0],
        text=place[1],
        comparisons=tuple(comparisons),
        effect=effect,
        seeds=seeds,
        verdict=overall(judged, [c.verdict for c in comparisons if not c.says_nothing]),
        progress=progress,
    )


def _count(parts: Iterable[set[int]]) -> int:
    return sum(len(part) for part in parts)

"""Read run folders into claims: comparisons with verdicts, and what was chosen on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsemend.config.values import leaves
from sparsemend.names import METRIC, VALIDATION_METRIC
from sparsemend.result.runs import RunRecord, find_runs
from sparsemend.sweep.claims.choice import best_value
from sparsemend.sweep.claims.claim import BySeed, Chosen, Claim, Comparison, Judged
from sparsemend.sweep.claims.equality import check_same, check_side, check_sides
from sparsemend.sweep.claims.facts import ComparedAt, MeasuredState, measured_states
from sparsemend.sweep.claims.published import published_ratio
from sparsemend.sweep.claims.statements import PER_WINDOW, Rules, Statement, read_rules
from sparsemend.sweep.claims.verdict import effect_of, pooled_effect, verdict


def read_claims(folders: Sequence[Path]) -> list[Claim]:
    """The claims whose cells lie under the folders, by name.

    Raises ValueError where there is none, or where two sweeps of a claim state other rules.
    """
    by_claim: dict[str, list[RunRecord]] = {}
    for run in find_runs(folders):
        if run.config.get("claim"):
            by_claim.setdefault(str(run.config["claim"]), []).append(run)
    if not by_claim:
        raise ValueError(
            f"no cell of a claim under {', '.join(map(str, folders))}; run "
            "sparsemend -m experiment=claims/dsnot, or give its folder"
        )
    return [_claim(name, by_claim[name]) for name in sorted(by_claim)]


def _claim(name: str, runs: Sequence[RunRecord]) -> Claim:
    rules = _rules_of(name, runs)
    states = list(measured_states(runs))
    judged: list[Judged] = []
    chosen: dict[tuple[str, ComparedAt], Chosen] = {}
    for statement in rules.statements:
        comparisons = _compare(statement, states, rules, chosen)
        places = dict.fromkeys((c.setting.model, c.setting.text) for c in comparisons)
        judged += [
            _judge(statement, place, [c for c in comparisons if _place(c) == place])
            for place in places
        ]
    choices = tuple(chosen.values())
    return Claim(name, tuple(runs), tuple(judged), choices, rules.swept, rules.chosen_key)


def _rules_of(name: str, runs: Sequence[RunRecord]) -> Rules:
    sweeps = list(dict.fromkeys(run.folder.parent for run in runs))
    rules = {sweep: read_rules(sweep) for sweep in sweeps}
    first = sweeps[0]
    for sweep in sweeps:
        if rules[sweep] != rules[first]:
            raise ValueError(
                f"two sweeps of claim {name} state other rules: {first} and {sweep}; give one of "
                "them, or run its command again, which measures only what has changed"
            )
    return rules[first]


def _place(comparison: Comparison) -> tuple[str, str]:
    return comparison.setting.model, comparison.setting.text


def _compare(
    statement: Statement,
    states: Sequence[MeasuredState],
    rules: Rules,
    chosen: dict[tuple[str, ComparedAt], Chosen],
) -> list[Comparison]:
    """The statement in every setting that has both sides; adds to `chosen`."""
    sides: list[dict[ComparedAt, BySeed]] = []
    for conditions in (statement.ours, statement.rival):
        by_setting: dict[ComparedAt, list[MeasuredState]] = {}
        for state in states:
            if state.meets(conditions) and state.value(statement.measure) is not None:
                by_setting.setdefault(state.setting(statement.measure), []).append(state)
        sides.append({})
        for setting, members in by_setting.items():
            name, metric = _name(conditions), statement.measure
            metric = metric if metric in PER_WINDOW else METRIC
            sides[-1][setting], choice = _by_seed(name, setting, members, rules, metric)
            if choice is not None:
                chosen.setdefault((choice.side, setting), choice)
    comparisons = []
    for setting in sorted(sides[0].keys() & sides[1].keys()):
        ours, rival = sides[0][setting], sides[1][setting]
        check_sides([*ours.values(), *rival.values()])
        pair = [_logarithms(side, statement.measure) for side in (ours, rival)]
        outcome = effect_of(pair[0], pair[1], _weights(ours, statement.measure))
        if outcome is not None:
            effect, seeds = outcome
            comparisons.append(
                Comparison(
                    setting,
                    ours,
                    rival,
                    effect,
                    seeds,
                    verdict(effect, statement.at_most),
                    published_ratio(statement, setting),
                )
            )
    return comparisons


def _name(conditions: Mapping[str, Any]) -> str:
    """What a side is called: `atp`, `seft, grow_scope=active`."""
    names = [str(v) for k, v in conditions.items() if k in ("row", "method", "schedule")]
    rest = [f"{k.rpartition('.')[2]}={v}" for k, v in conditions.items() if "." in k]
    return ", ".join([*names, *rest])


def _by_seed(
    side: str, setting: ComparedAt, members: Sequence[MeasuredState], rules: Rules, metric: str
) -> tuple[BySeed, Chosen | None]:
    """One state per seed: of several values of the chosen key, that which validation chooses.

    metric: of the test windows, by which the choice is judged.
    """
    by_value: dict[Any, dict[int, MeasuredState]] = {}
    for state in members:
        value = _value_of(state, rules.chosen_key)
        by_seed = by_value.setdefault(value, {})
        earlier = by_seed.get(state.run.seed)
        if earlier is not None:
            check_same(earlier, state)
        by_seed[state.run.seed] = state
    check_side(members, but_for=rules.chosen_key)
    if len(by_value) == 1:
        return next(iter(by_value.values())), None
    tried = {
        value: states[seed]
        for value, states in by_value.items()
        if (seed := rules.chosen_on) in states
    }
    validation = {v: _metric(state, VALIDATION_METRIC) for v, state in tried.items()}
    value = best_value(validation)
    if value is None:
        return {}, None
    test = {v: _metric(state, metric) for v, state in tried.items()}
    by_test = best_value(test)
    assert by_test is not None
    windows = [tried[v].logarithms(metric) for v in (value, by_test)]
    pair = [{0: losses} for losses in windows if losses is not None]
    gap = effect_of(pair[0], pair[1], tried[value].weights(metric)) if len(pair) == 2 else None
    seconds = sum(state.run.result.seconds or 0.0 for state in tried.values())
    chosen = Chosen(
        side=side,
        setting=setting,
        key=str(rules.chosen_key),
        validation=dict(sorted(validation.items())),
        value=value,
        by_test=by_test,
        gap=gap[0] if gap else None,
        seconds=seconds,
    )
    return by_value[value], chosen


def _value_of(state: MeasuredState, key: str | None) -> Any:
    """The value of the chosen key in a run; None where the state does not depend on it."""
    if key is None or (state.state == "pruned" and key.startswith("method.")):
        return None
    return dict(leaves(state.run.config)).get(key)


def _metric(state: MeasuredState, name: str) -> float:
    value = state.run.value("repaired", name)
    return math.inf if value is None else value


def _logarithms(side: BySeed, measure: str) -> dict[int, Any]:
    by_seed = {seed: state.logarithms(measure) for seed, state in side.items()}
    return {seed: values for seed, values in by_seed.items() if values is not None}


def _judge(
    statement: Statement, place: tuple[str, str], comparisons: Sequence[Comparison]
) -> Judged:
    pairs = [
        (_logarithms(c.ours, statement.measure), _logarithms(c.rival, statement.measure))
        for c in comparisons
    ]
    weights = _weights(comparisons[0].ours, statement.measure) if comparisons else None
    pooled = pooled_effect(pairs, weights)
    effect, seeds = pooled if pooled is not None else (None, ())
    text = None if effect is None else verdict(effect, statement.at_most)
    return Judged(statement, *place, tuple(comparisons), effect, seeds, text)


def _weights(side: BySeed, measure: str) -> Any:
    """How much each test window (W,) counts, which is the same for all runs on a text."""
    return next((state.weights(measure) for state in side.values()), None)

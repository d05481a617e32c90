"""What a claim plans to measure, and what of it is still missing.

A claim's yaml sweeps some keys; every combination of their values is a planned cell, with each
seed.  Overrides of the command that nothing sweeps (another text, an N:M pattern) make another
part of the claim, which plans as many; the part without any is planned even where nothing of it
is measured.  The trials by which a value is chosen are not counted, and before all of them are made
nothing of their row is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemend.config.values import NOT_HASHED, leaves
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.claims.cells import pairs_of
from sparsemend.sweep.claims.choice import BRACKET, TrialRule, best_value
from sparsemend.sweep.claims.facts import ComparedAt, MeasuredState
from sparsemend.sweep.claims.side import validation_of, value_of
from sparsemend.sweep.claims.statements import Rules, Statement

Combination = Mapping[str, str]  # swept key -> value
# keys of a command that make no other cells
NO_PART = frozenset({*NOT_HASHED, "hardware", "hydra"}) - {"variant"}
PLACES = ("model", "data", "scale", "debug")  # sections that decide the model and the text
SWEPT_AS = {"row": "arena", "schedule": "sparsity_schedule"}  # fact of a side -> key that sweeps it


@dataclass(frozen=True)
class Part:
    """One part of a claim: overrides that nothing sweeps, its planned cells, those measured."""

    overrides: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    planned: tuple[Combination, ...]
    measured: tuple[Combination, ...]

    def measures(self, statement: Statement, place: tuple[str, str]) -> bool:
        """Whether its cells, of which there are some, are of a statement on a model and text."""
        sides = [side for side in (statement.ours, statement.rival, statement.share_of) if side]
        task = {key: value for side in sides for key, value in side.items() if key == "task"}
        dotted = [{key: value for key, value in side.items() if "." in key} for side in sides]
        asked = [{**task, **keys} for keys in dotted if keys] or [task]
        states = (MeasuredState(run, run.row, "repaired") for run in self.runs)
        return any(
            _place(state.setting(statement.measure)) == place and any(map(state.meets, asked))
            for state in states
        )

    @property
    def elsewhere(self) -> bool:
        """Whether its model or text is not that of the experiment."""
        return any(line.partition("=")[0].partition(".")[0] in PLACES for line in self.overrides)


@dataclass(frozen=True)
class CellCount:
    """How many of the planned cells are measured."""

    measured: int
    planned: int

    @property
    def missing(self) -> int:
        return self.planned - self.measured

    @property
    def text(self) -> str:
        """`12 of 27 cells measured`"""
        return f"{self.measured} of {self.planned} cells measured"


def _place(setting: ComparedAt) -> tuple[str, str]:
    return setting.model, setting.text


def parts_of(
    runs: Sequence[RunRecord], rules: Rules, failed: Sequence[RunRecord] = ()
) -> tuple[Part, ...]:
    """The parts of a claim: its own, and each of which at least one cell says something.

    failed: cells that say nothing, and were tried where a value was chosen.
    """
    experiment = next(
        (line for line in _part(runs[0], rules) if line.startswith("experiment=")), ""
    )
    by_overrides: dict[tuple[str, ...], list[RunRecord]] = {(experiment,): []}
    for run in runs:
        by_overrides.setdefault(_part(run, rules), []).append(run)
    of_choice = _of_the_choice(runs, rules, failed)
    return tuple(
        _count(overrides, members, rules, [run for run in members if run in of_choice])
        for overrides, members in by_overrides.items()
    )


def _part(run: RunRecord, rules: Rules) -> tuple[str, ...]:
    """The overrides of a cell that nothing sweeps, less those that make no other cells."""
    return tuple(
        sorted(
            f"{key}={value}"
            for key, value in pairs_of(run)
            if key not in rules.swept and key != rules.chosen_key and _makes_another(key)
        )
    )


def _makes_another(key: str) -> bool:
    """Whether another value of an override makes another cell."""
    return key.partition(".")[0].partition("/")[0] not in NO_PART


def _count(
    overrides: tuple[str, ...],
    runs: Sequence[RunRecord],
    rules: Rules,
    counted: Sequence[RunRecord],
) -> Part:
    swept = dict(rules.swept)
    if any(line.startswith("pattern=") for line in overrides):
        swept.pop("sparsity", None)  # which an N:M pattern has of itself
    several = {key: values for key, values in swept.items() if len(values) > 1}
    planned = [
        dict(zip(several, values, strict=True)) for values in itertools.product(*several.values())
    ]
    cells = [dict(pairs_of(run)) for run in counted]
    measured = [one for one in planned if any(_agrees(cell, one) for cell in cells)]
    return Part(overrides, tuple(runs), tuple(planned), tuple(measured))


def _of_the_choice(
    runs: Sequence[RunRecord], rules: Rules, failed: Sequence[RunRecord]
) -> list[RunRecord]:
    """The runs whose value of the chosen key is the one that counts, once all were tried."""
    if rules.chosen_key is None:
        return list(runs)
    by_row: dict[frozenset[tuple[str, str]], list[RunRecord]] = {}
    for run in (*runs, *failed):
        by_row.setdefault(_row(run, rules), []).append(run)
    return [run for members in by_row.values() for run in _of_one_choice(members, rules, failed)]


def _row(run: RunRecord, rules: Rules) -> frozenset[tuple[str, str]]:
    """What the cells among which one value is chosen have in common."""
    return frozenset(
        (key, value)
        for key, value in pairs_of(run)
        if key not in ("seed", rules.chosen_key) and _makes_another(key)
    )


def _of_one_choice(
    runs: Sequence[RunRecord], rules: Rules, failed: Sequence[RunRecord]
) -> list[RunRecord]:
    """As `_of_the_choice`, of one row; runs without the key have nothing to choose, and count."""
    states = [(run, MeasuredState(run, run.row, "repaired")) for run in runs if run not in failed]
    values = [(run, state, value_of(state, rules.chosen_key)) for run, state in states]
    listed = rules.of_the_list(value for _, _, value in values)
    other = not listed and not isinstance(
        rules.trial_rule.points, str
    )  # the list is of another row
    asked = TrialRule(BRACKET) if other else rules.trial_rule
    key = str(rules.chosen_key)
    trials = [
        *((run, dict(leaves(run.config)).get(key), math.inf) for run in failed if run in runs),
        *((run, value, validation_of(state)) for run, state, value in values),
    ]
    tried: dict[float, float] = {
        value: objective
        for run, value, objective in trials
        if value is not None and run.seed == rules.chosen_on
        if not listed or value in listed
    }
    chosen = best_value(tried)
    counted = set(tried) if chosen is None else {chosen}
    if not asked.are_over(tried):
        counted = set()
    return [run for run, _, value in values if value is None or value in counted]


def _agrees(cell: Mapping[str, str], planned: Combination) -> bool:
    """Whether a cell is a planned one; a key that the cell does not have decides nothing."""
    return all(_equal(cell.get(key, value), value) for key, value in planned.items())


def _equal(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def progress_of(parts: Sequence[Part]) -> CellCount:
    """Of all cells of some parts."""
    return CellCount(sum(len(p.measured) for p in parts), sum(len(p.planned) for p in parts))


def progress_on(statement: Statement, place: tuple[str, str], parts: Sequence[Part]) -> CellCount:
    """Of the cells on which a statement rests on a model and text: those of one of its sides."""
    sides = [statement.ours, statement.rival, *([statement.share_of] if statement.share_of else [])]
    theirs = [part for part in parts if part.measures(statement, place)]
    if not all(part.elsewhere for part in theirs):
        theirs += [part for part in parts if not part.runs]
    counts = [
        sum(any(_may_be(one, side) for side in sides) for one in combinations)
        for part in theirs
        for combinations in (part.measured, part.planned)
    ]
    return CellCount(sum(counts[::2]), sum(counts[1::2]))


def _may_be(planned: Combination, side: Mapping[str, Any]) -> bool:
    """Whether a planned cell may be of a side, by those of its conditions that are swept."""
    named = {SWEPT_AS.get(key, key): value for key, value in side.items()}
    return all(str(planned[key]) in _texts(value) for key, value in named.items() if key in planned)


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]

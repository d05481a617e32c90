"""Refuse what is not compared like with like: cells of other settings than the rest.

A sweep's folder may hold cells of several configurations: those of a part that was not run again
after a change, or trials of values that are tried no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsemend.config.values import leaves
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.claims.facts import MeasuredState
from sparsemend.table.grouping import differing

# what both sides of a comparison have in common, beside what `ComparedAt` says
SECTIONS = ("model", "data", "evaluation", "pruner", "rounding", "budget")
ALIKE = 0.02  # a support that evolves trains some weights more or fewer than it was given
OF_TEXT = ("corpus", "split", "tokens", "windows", "seqlen", "dtype", "data_hash")
OF_ARENA = ("steps", "windows_per_step", "rank", "validation_windows")


def check_same(earlier: MeasuredState, state: MeasuredState) -> None:
    """Raise ValueError where two cells of one side and seed differ in what decides the state."""
    settings = [
        {**one.run.settings(one.state), "variant": one.row.variant} for one in (earlier, state)
    ]
    if keys := differing(settings):
        values = " and ".join(str(each.get(keys[0], "unset")) for each in settings)
        raise ValueError(
            f"a cell of claim {state.run.config['claim']} is there twice with seed "
            f"{state.run.seed}, and differs in {keys[0]} ({values})\n  there: "
            f"{earlier.run.folder}\n  here: {state.run.folder}\ngive the folders of one sweep"
        )


def check_side(states: Sequence[MeasuredState], *, but_for: str | None) -> None:
    """Raise ValueError where states of one side, of all seeds, differ in more than the chosen key.

    but_for: that key, or None.
    """
    _check_equal(states, [_decisive(state, but_for) for state in states])
    _check_texts(states)


def check_sides(states: Sequence[MeasuredState]) -> None:
    """Raise ValueError where states of the two sides differ in model, text, measure or budget."""
    _check_equal(states, [_common(state.run) for state in states])
    _check_texts(states)


def unequal_budget(states: Sequence[MeasuredState]) -> str | None:
    """A line where states had more than ALIKE apart of what `budget` makes equal."""
    spent = {}
    for state in states:
        run = state.run
        tokens = run.config.get("budget") == "tokens"
        number = run.result.repair.diagnostics.get("tokens") if tokens else run.trained_parameters
        if number and run.config.get("budget") in ("tokens", "trainable"):
            what = "read in training" if tokens else "trained"
            spent[number] = f"cell {run.folder.name} has {number:,} {what}"
    if not spent or max(spent) <= (1 + ALIKE) * min(spent):
        return None
    return f"no equal budget: {spent[min(spent)]}, {spent[max(spent)]}"


def _check_texts(states: Sequence[MeasuredState]) -> None:
    """Raise ValueError where the text itself differs: that of `python_docs` is Python's own."""
    read = [state for state in states if state.run.result.protocol.data_hash is not None]
    facts = [state.run.result.protocol for state in read]
    _check_equal(read, [{key: getattr(each, key) for key in OF_TEXT} for each in facts])


def _check_equal(states: Sequence[MeasuredState], settings: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where a state was made or measured by other settings than the first."""
    for state, its in zip(states, settings, strict=True):
        if keys := differing([settings[0], its]):
            values = " and ".join(str(each.get(keys[0], "unset")) for each in (settings[0], its))
            raise ValueError(
                f"cells that are compared differ in {keys[0]} ({values})\n  there: "
                f"{states[0].run.folder}\n  here: {state.run.folder}\nrun the command of each part "
                "again, which measures anew what has changed, and remove the folder of a cell that "
                "is tried no more"
            )


def _decisive(state: MeasuredState, but_for: str | None) -> dict[str, Any]:
    """The settings by which a state was made and measured, without the seed and one more key."""
    settings = {**state.run.settings(state.state), **_common(state.run)}
    return {key: value for key, value in settings.items() if key != but_for}


def _common(run: RunRecord) -> dict[str, Any]:
    """The settings that both sides of a comparison share: model, data, measure, budget."""
    parts = {section: run.config[section] for section in SECTIONS if section in run.config}
    arena = run.config.get("arena") or {}
    return dict(leaves({**parts, "arena": {key: arena[key] for key in OF_ARENA if key in arena}}))

"""Read run folders into claims: comparisons with verdicts, and what was chosen on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsemend.result.runs import RunRecord
from sparsemend.sweep.claims.cells import ClaimCells, read_claim_cells
from sparsemend.sweep.claims.claim import Claim, Comparison, Judged
from sparsemend.sweep.claims.compare import compare, judge, missing_of
from sparsemend.sweep.claims.facts import ComparedAt, measured_states
from sparsemend.sweep.claims.planned import parts_of, progress_on
from sparsemend.sweep.claims.side import Chosen
from sparsemend.sweep.claims.statements import Rules, read_rules


def read_claims(folders: Sequence[Path]) -> list[Claim]:
    """The claims whose cells lie under the folders, by name.

    Raises ValueError where there is none, or where the cells of one are not to be compared.
    """
    claims, refused = read_each_claim(folders)
    if refused:
        raise ValueError(refused[0])
    return claims


def read_each_claim(folders: Sequence[Path]) -> tuple[list[Claim], list[str]]:
    """The claims that can be judged, by name, and for each other claim why it cannot.

    Raises ValueError where there is no cell of a claim.
    """
    claims, refused = [], []
    for name, cells in read_claim_cells(folders).items():
        try:
            claims.append(_claim(name, cells))
        except ValueError as error:
            refused.append(str(error))
    return claims, refused


def _claim(name: str, cells: ClaimCells) -> Claim:
    rules = _rules_of(name, cells.measured)
    states = list(measured_states(cells.finished, cells.diverged))
    parts = parts_of(cells.measured, rules, cells.failed)
    judged: list[Judged] = []
    unmeasured: list[str] = []
    chosen: dict[tuple[str, ComparedAt], Chosen] = {}
    for statement in rules.statements:
        comparisons = compare(statement, states, rules)
        if not comparisons:
            unmeasured.append(f"{statement.says}: {missing_of(statement, states)}")
        for one in (side.chosen for c in comparisons for side in c.named_sides.values()):
            if one is not None:
                chosen.setdefault((one.side, one.setting), one)
        judged += [
            judge(
                statement,
                place,
                [c for c in comparisons if _place(c) == place],
                progress_on(statement, place, parts),
            )
            for place in dict.fromkeys(map(_place, comparisons))
        ]
    return Claim(
        name=name,
        runs=cells.finished,
        diverged=cells.diverged,
        ended=cells.ended,
        judged=tuple(judged),
        unmeasured=tuple(unmeasured),
        chosen=tuple(chosen.values()),
        parts=parts,
        swept=rules.swept,
        chosen_key=rules.chosen_key,
    )


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

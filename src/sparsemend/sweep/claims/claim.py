"""A claim as it was measured: comparisons, verdicts, and what was chosen on the way."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemend.result.format import format_metric
from sparsemend.result.run_result import RunResult
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.arena.interval import Ratio
from sparsemend.sweep.claims.facts import ComparedAt
from sparsemend.sweep.claims.planned import CellCount, Part
from sparsemend.sweep.claims.published import PublishedRatio
from sparsemend.sweep.claims.side import Chosen, Side
from sparsemend.sweep.claims.statements import Statement

UNITS = {"peak_bytes": 2**20}


@dataclass(frozen=True)
class KeptGain:
    """How much of another side's gain over the rival ours keeps."""

    name: str  # of that side
    share: float  # at least to be kept
    effect: Ratio  # of that side over the rival
    kept: float | None  # share of the logarithm; None where the gain is not told from none
    over_goal: Ratio  # ours over what keeps exactly `share`
    verdict: str | None  # whether at least `share` is kept; None where there is nothing to keep


@dataclass(frozen=True)
class Comparison:
    """A statement in one setting."""

    setting: ComparedAt
    ours: Side
    rival: Side
    effect: Ratio | None  # None where no seed has a number of both sides
    seeds: tuple[int, ...]  # in the effect
    collapsed: tuple[int, ...]  # seeds of both sides on which ours collapsed
    rival_collapsed: tuple[int, ...]
    verdict: str
    published: PublishedRatio | None
    gain: KeptGain | None
    bound: Side | None  # whose gain is to be kept

    @property
    def named_sides(self) -> dict[str, Side]:
        """Name -> side, of all that are compared."""
        sides = [side for side in (self.ours, self.rival, self.bound) if side is not None]
        return {side.name: side for side in sides}

    @property
    def says_nothing(self) -> bool:
        """Whether both sides collapsed on every seed that they share."""
        return self.effect is None and self.collapsed == self.rival_collapsed

    @property
    def pairs(self) -> int:
        """The seeds that both sides have, collapsed or not."""
        return len(self.ours.by_seed.keys() & self.rival.by_seed.keys())

    def mean(self, side: Side, measure: str) -> str:
        """The geometric mean of a side over the compared seeds, as text in the unit of MEASURES.

        Those of the two sides divide to their effect.
        """
        values = [side.by_seed[s].value(measure) for s in self.seeds if s in side.by_seed]
        numbers = [value for value in values if value is not None]
        mean = statistics.geometric_mean(numbers) / UNITS.get(measure, 1) if numbers else None
        return format_metric(mean, 3)


@dataclass(frozen=True)
class Judged:
    """A statement on one model and text: in each setting, and over all of them."""

    statement: Statement
    model: str
    text: str
    comparisons: tuple[Comparison, ...]
    effect: Ratio | None  # over settings; None where no seed has all of them
    seeds: tuple[int, ...]
    verdict: str
    progress: CellCount

    @property
    def collapses(self) -> tuple[int, int, int]:
        """(of ours, of the rival, pairs) over all settings."""
        return (
            sum(len(c.collapsed) for c in self.comparisons),
            sum(len(c.rival_collapsed) for c in self.comparisons),
            sum(c.pairs for c in self.comparisons),
        )


@dataclass(frozen=True)
class Claim:
    """All that is measured of one claim.

    ended: (folder, why) of cells that neither finished nor diverged in training.
    unmeasured: a line per statement that nothing measured, with the sides that have no cell.
    swept: as of `Rules`.
    """

    name: str
    runs: tuple[RunRecord, ...]
    diverged: tuple[RunRecord, ...]
    ended: tuple[tuple[Path, str], ...]
    judged: tuple[Judged, ...]
    unmeasured: tuple[str, ...]
    chosen: tuple[Chosen, ...]
    parts: tuple[Part, ...]
    swept: Mapping[str, Sequence[str]]
    chosen_key: str | None

    @property
    def hours(self) -> float:
        """Hours that the cells took one after the other, with what was stopped or diverged."""
        return sum(_seconds(run.result) for run in (*self.runs, *self.diverged)) / 3600


def _seconds(result: RunResult) -> float:
    """Seconds of a run and of the attempts that it continued; by stages where it has no sum."""
    by_stages = result.attempts if result.seconds is None else result.earlier_attempts
    stages = (cost.seconds for costs in by_stages for cost in costs.values())
    return sum(stages, result.seconds or 0.0)

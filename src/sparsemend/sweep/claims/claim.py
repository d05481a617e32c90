"""A claim as it was measured: comparisons, verdicts, and what was chosen on the way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from sparsemend.result.format import format_metric
from sparsemend.result.runs import RunRecord
from sparsemend.sweep.arena.bootstrap import Ratio
from sparsemend.sweep.claims.facts import ComparedAt, MeasuredState
from sparsemend.sweep.claims.published import PublishedRatio
from sparsemend.sweep.claims.statements import Statement

UNITS = {"peak_bytes": 2**20}
BySeed = Mapping[int, MeasuredState]


@dataclass(frozen=True)
class Comparison:
    """A statement in one setting."""

    setting: ComparedAt
    ours: BySeed
    rival: BySeed
    effect: Ratio
    seeds: tuple[int, ...]
    verdict: str
    published: PublishedRatio | None

    def mean(self, side: BySeed, measure: str) -> str:
        """The mean of a side over the compared seeds, as text in the unit of MEASURES."""
        values = [side[seed].value(measure) for seed in self.seeds]
        numbers = [value for value in values if value is not None]
        return format_metric(statistics.fmean(numbers) / UNITS.get(measure, 1), 3)


@dataclass(frozen=True)
class Judged:
    """A statement on one model and text: in each setting, and over all of them."""

    statement: Statement
    model: str
    text: str
    comparisons: tuple[Comparison, ...]
    effect: Ratio | None  # over settings; None where no seed has all of them
    seeds: tuple[int, ...]
    verdict: str | None


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

    @property
    def at_edge(self) -> bool:
        """Whether the chosen value is the lowest or highest of those whose trial finished."""
        values = [
            value for value, perplexity in self.validation.items() if math.isfinite(perplexity)
        ]
        return self.value in (min(values), max(values))


@dataclass(frozen=True)
class Claim:
    """All that is measured of one claim."""

    name: str
    runs: tuple[RunRecord, ...]
    judged: tuple[Judged, ...]
    chosen: tuple[Chosen, ...]
    swept: Mapping[str, str]  # as of `Rules`
    chosen_key: str | None

    @property
    def hours(self) -> float:
        """Hours that the cells took one after the other."""
        return sum(run.result.seconds or 0.0 for run in self.runs) / 3600

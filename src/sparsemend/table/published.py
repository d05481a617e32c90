"""The numbers that papers, their repositories and others published: assets/published.csv.

One line per number, as published (accuracies stay fractions or percent, whichever the source has);
`-` is unknown or does not apply, never zero.  Every line names its source; `mark` says how a number
was read where that is not a table in text (image, digitised, log, second-hand, rerun) and what is
doubtful about it.  `reporter` says whose number it is: own (the paper of the method that it is of),
other (second-hand: another paper, or somebody who reruns or quotes it), `-` (of a dense model, or
of what no paper claims, as magnitude).  `deviation` is the standard deviation beside a mean, in the
unit of the value.  Perplexity counts tokens; per word it is another metric, word_perplexity.

Groups are named as in conf/: pruner, schedule, method; a dense model has pruner none and sparsity
0.  `variant` is what a row of a table varies and no group names.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property

from sparsemend.config.locations import PACKAGE
from sparsemend.errors import OverrideError, nearest

UNKNOWN = "-"
FILE = PACKAGE / "assets" / "published.csv"
# metric of a difference of two rows -> the metric of the two rows
DIFFERENCE_OF = {"perplexity_change": "perplexity", "accuracy_points_change": "acc"}
PERCENT = "accuracy_percent"
OWN, SECOND_HAND = "own", "other"  # of reporter
MINUS = " minus "
PARTS = 9  # of an identity: paper/table/model/amount/pruner/schedule/method/dataset/metric


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number; every field as in the file."""

    paper: str
    table: str
    model: str
    sparsity: str
    pattern: str
    pruner: str
    schedule: str
    method: str
    variant: str
    dataset: str
    metric: str
    seqlen: str
    split: str
    value: str
    deviation: str
    source: str
    mark: str
    reporter: str

    @cached_property
    def identity(self) -> str:
        """paper/table/model/amount/pruner/schedule/method[~variant]/dataset/metric, unique.

        amount is the pattern of an N:M row (or of one without a rate), else the sparsity.
        """
        structured = self.pattern not in (UNKNOWN, "unstructured")
        amount = self.pattern if structured else self.sparsity
        variant = re.sub(r"[^a-z0-9.]+", "_", self.variant.lower()).strip("_")
        method = f"{self.method}~{variant}" if variant else self.method
        parts = (self.pruner, self.schedule, method, self.dataset, self.metric)
        return "/".join((self.paper, self.table, self.model, amount, *parts))

    @property
    def title(self) -> str:
        """paper/table: also the `name` of the experiment that repeats it."""
        return f"{self.paper}/{self.table}"

    @property
    def dense(self) -> bool:
        """Whether the number is of the model before pruning."""
        return self.pruner == "none" and self.sparsity == "0" and self.method == "none"

    @property
    def second_hand(self) -> bool:
        """Whether somebody else than the method's own paper reports the number."""
        return self.reporter == SECOND_HAND

    @cached_property
    def sides(self) -> tuple[Published, Published] | None:
        """The two cells whose difference this one is ("atp minus uniform"), None for any other."""
        if self.metric not in DIFFERENCE_OF or MINUS not in self.variant:
            return None
        first, second = self.variant.split(MINUS)
        group = "method" if "none" in (first, second) else "schedule"
        plain = replace(self, variant=UNKNOWN, metric=DIFFERENCE_OF[self.metric], value=UNKNOWN)
        return replace(plain, **{group: first}), replace(plain, **{group: second})

    @property
    def number(self) -> float | None:
        """The value in the unit of our runs: a percentage as a fraction."""
        if self.value == UNKNOWN:
            return None
        return float(self.value) / 100 if self.metric == PERCENT else float(self.value)

    @property
    def shown(self) -> str:
        """The value as published, `6.93 ± 0.01` with a deviation, a percentage as a fraction."""
        parts = [part for part in (self.shown_value, self.shown_deviation) if part != UNKNOWN]
        return " ± ".join(parts) or UNKNOWN

    @property
    def shown_value(self) -> str:
        """The value alone."""
        return self._fraction(self.value)

    @property
    def shown_deviation(self) -> str:
        """The deviation alone, `-` where the source has none."""
        return self._fraction(self.deviation)

    def _fraction(self, text: str) -> str:
        percent = self.metric == PERCENT and text != UNKNOWN
        return f"{float(text) / 100:g}" if percent else text


@cache
def published_numbers() -> tuple[Published, ...]:
    """Every published number, in the file's order."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {field.name for field in fields(Published)}
    if not rows or set(rows[0]) != names:
        raise ValueError(f"{FILE} does not have the columns {', '.join(sorted(names))}")
    return tuple(Published(**row) for row in rows)


def find_cell(identity: str) -> Published:
    """The cell with this identity; raises OverrideError with the nearest ones."""
    cells = {cell.identity: cell for cell in published_numbers()}
    if identity in cells:
        return cells[identity]
    raise OverrideError(
        f"unknown cell {identity!r}\n{nearest_cells(identity, list(cells))}"
        "`sparsemend-tables list` shows every cell"
    )


def nearest_cells(identity: str, identities: list[str]) -> str:
    """A line with up to three identities that resemble `identity`, empty where none does.

    They are compared part by part, so that one wrong part is found among hundreds of others.
    """
    parts = identity.split("/")
    if len(parts) == PARTS:
        same = [other for other in identities if _differing(parts, other.split("/")) <= 2]
        by_parts = sorted(same, key=lambda other: _differing(parts, other.split("/")))
        identities = by_parts or identities
    return nearest(identity, identities, alike=0.5)


def _differing(one: list[str], other: list[str]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=False))

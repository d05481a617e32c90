"""Rows beside torch's, and beside our dense kernel's, which tells what sparsity itself buys."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from time import perf_counter, thread_time
from typing import Any

from sparsemend.bench.suite.base import BenchRow, Column


def _gain(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{1 / row[key]:.2f}" if row[key] else "-"


GAINS = (Column("gain", _gain("median_ratio")), Column("over ours", _gain("median_ratio_to_ours")))


def note_ratios(rows: Mapping[str, BenchRow], ours: str) -> None:
    """Note the median of every row's seconds over those of the row `ours`, round by round."""
    floors = rows[ours].seconds if ours in rows else []
    for row in rows.values():
        ratios = [elapsed / floor for elapsed, floor in zip(row.seconds, floors, strict=False)]
        row.figures["median_ratio_to_ours"] = statistics.median(ratios) if ratios else None
        row.figures["ratio_to_ours_range"] = [min(ratios), max(ratios)] if ratios else None


def seconds(clock: str, work: Callable[[], object]) -> float:
    """What a call takes by the clock of the `wall`, or by that of the processor: `cpu`."""
    now = thread_time if clock == "cpu" else perf_counter
    started = now()
    work()
    return now() - started

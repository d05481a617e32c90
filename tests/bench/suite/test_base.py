"""Order of measuring, and ratios from pairs of one round."""

from __future__ import annotations

from sparsemend.bench.suite.base import BenchRow, Section, schedule


def test_every_round_measures_every_label_once_in_alternating_direction() -> None:
    assert schedule(["a", "b", "c"], 3) == [
        (0, "a"),
        (0, "b"),
        (0, "c"),
        (1, "c"),
        (1, "b"),
        (1, "a"),
        (2, "a"),
        (2, "b"),
        (2, "c"),
    ]


def test_a_ratio_compares_seconds_of_the_same_round() -> None:
    # the machine is three times slower in the second round; medians of seconds would give 8 / 4
    base = BenchRow(label="base", seconds=[2.0, 6.0, 4.0])
    other = BenchRow(label="other", seconds=[3.0, 9.0, 8.0])
    section = Section(title="", baseline="base", columns=(), rows=[base, other])
    content = section.content()["rows"][1]
    assert content["ratios"] == [1.5, 1.5, 2.0]
    assert content["median_ratio"] == 1.5
    assert content["ratio_range"] == [1.5, 2.0]
    assert content["median_seconds"] == 8.0


def test_without_a_baseline_there_are_seconds_but_no_ratios() -> None:
    rows = [BenchRow(label="base", refused="too large"), BenchRow(label="other", seconds=[1.0])]
    section = Section(title="", baseline="base", columns=(), rows=rows)
    content = section.content()["rows"][1]
    assert (content["median_seconds"], content["median_ratio"]) == (1.0, None)

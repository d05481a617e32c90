import math
import re
from xml.etree import ElementTree

import pytest

from sparsemend.table.page.svg import (
    HEIGHT,
    WIDTH,
    Axis,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    short,
)


def numbers(svg: str, attribute: str) -> list[float]:
    return [float(found) for found in re.findall(rf' {attribute}="([-\d.]+)"', svg)]


def test_charts_are_well_formed_and_stay_inside_their_box() -> None:
    points = [(0.0, 1.0), (1.0, 5.0), (2.0, 100.0)]
    chart = line_chart([Series("a < b", points, (0.5, 1, 20))], x="x", y="y", log=True)
    ElementTree.fromstring(chart)
    assert max(numbers(chart, "cx")) <= WIDTH
    assert min(numbers(chart, "cy")) >= 0
    assert max(numbers(chart, "cy")) <= HEIGHT
    assert "a &lt; b: 0, 1" in chart


def test_higher_values_are_drawn_higher() -> None:
    chart = line_chart([Series("a", [(0, 1.0), (1, 2.0), (2, 3.0)])], x="x", y="y")
    heights = numbers(chart, "cy")
    assert heights == sorted(heights, reverse=True)


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    axis = Axis(1.0, 100.0, 0.0, 10.0, log=True)
    assert [axis.at(v) for v in (1, 10, 100)] == pytest.approx([0, 5, 10])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 5.0, [0, 1, 2, 3, 4, 5]), (0.48, 0.92, [0.5, 0.6, 0.7, 0.8, 0.9])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 1).ticks == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1.0, 3000.0, [1, 10, 100, 1000]), (15.0, 140.0, [20, 50, 100])],
)
def test_logarithmic_ticks_are_round_too(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 1, log=True).ticks == pytest.approx(ticks)


def test_what_is_not_finite_or_not_positive_is_left_out_of_a_logarithmic_line() -> None:
    points = [(0, math.nan), (1, 0.0), (2, 3.0), (3, math.inf), (4, 5.0)]
    chart = line_chart([Series("a", points)], x="x", y="y", log=True)
    assert chart.count("<circle") == 2


def test_a_dot_under_others_shows_as_a_ring() -> None:
    lines = [Series(name, [(0, 1.0), (1, top)]) for name, top in (("a", 2.0), ("b", 5.0))]
    chart = line_chart([*lines, Series("c", [(0, 1.0), (1, 8.0)])], x="x", y="y")
    assert re.findall(r'r="(\d)"', chart) == ["7", "3", "5", "3", "3", "3"]


def test_the_name_of_the_upward_axis_stands_above_its_numbers() -> None:
    chart = line_chart([Series("a", [(0, 1.0), (1, 9.0)])], x="x", y="perplexity")
    ElementTree.fromstring(chart)
    (name,) = re.findall(r'<text class="axis" x="([\d.]+)" y="([\d.]+)">perplexity', chart)
    ticks = re.findall(r'class="tick end" x="[\d.]+" y="([\d.]+)"', chart)
    assert float(name[1]) + 14 < min(map(float, ticks)) + 4  # 14: a phone's letters


def test_no_data_is_no_chart() -> None:
    assert line_chart([Series("a", [(0, math.nan)])], x="x", y="y") == ""
    assert bar_chart([("a", [0.0])], unit="s") == ""


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart([("a", [1.0, 2.0]), ("b", [6.0])], unit="s", parts=("x", "y"))
    ElementTree.fromstring(chart)
    wide = numbers(chart, "width")
    assert wide[1] == pytest.approx(2 * wide[0], abs=0.11)  # coordinates have one decimal
    assert wide[2] == pytest.approx(6 * wide[0], abs=0.3)


def test_a_heat_map_has_a_cell_per_pair_with_its_share() -> None:
    chart = heat_map(["a", "b"], [[1.0, 0.25], [0.25, 1.0]])
    ElementTree.fromstring(chart)
    assert chart.count("<rect") == 4
    assert "a and b: 0.250" in chart


def test_short_numbers() -> None:
    assert [short(v) for v in (0.02, 15.02, 4601, 21234, 3.1e6)] == [
        "0.02",
        "15",
        "4601",
        "21.2k",
        "3.1M",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.4, "999"),
        (999.7, "1000"),
        (9999.7, "10k"),
        (999_950.0, "1M"),
        (12_345.0, "12.3k"),
        (1e9, "1G"),
    ],
)
def test_a_number_that_rounds_up_takes_the_next_unit(value: float, text: str) -> None:
    assert short(value) == text


def test_a_deviation_stays_with_its_point_where_another_point_is_left_out() -> None:
    points = [(0.0, math.nan), (1.0, 2.0), (2.0, 3.0)]
    svg = line_chart([Series("a", points, (9.0, 0.0, 0.5))], x="x", y="y")
    across = numbers(svg, "cx")
    bars = re.findall(r'<line class="s thin[^"]*" x1="([-\d.]+)"', svg)
    assert [float(x) for x in bars] == [across[-1]]

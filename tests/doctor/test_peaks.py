"""Peaks of a few blocks and windows, carried on to all of them."""

from __future__ import annotations

import pytest

from sparsemend.doctor.peaks import DEVICE, HOST, Extent, Measured, Moment, Peak, by_stage, carry

WEIGHTS = Moment("load", "cpu", "a.py:1")
STATES = Moment("prune", "cpu", "b.py:2")
LOGITS = Moment("prune", "cpu", "c.py:3")


def run(blocks: int, windows: int, *, depth: int = 32) -> Measured:
    """10 bytes a block at one line, 3 a window and 1 a block at another, 400 at a third."""
    moments = {WEIGHTS: 10 * blocks, STATES: 3 * windows + blocks, LOGITS: 400}
    return Measured(Extent(blocks, windows), depth, moments, {"masks": 2 * blocks})


def test_bytes_are_carried_along_blocks_and_windows() -> None:
    moments, files = carry(run(2, 4), [run(4, 4), run(2, 8)], Extent(32, 128))
    assert moments == {WEIGHTS: 320, STATES: 3 * 128 + 32, LOGITS: 400}
    assert files == {"masks": 64}


def test_a_run_without_another_keeps_its_bytes() -> None:
    moments, _ = carry(run(2, 4), [], Extent(2, 4))
    assert moments == run(2, 4).moments


def test_a_moment_that_only_the_deeper_run_has_keeps_its_bytes() -> None:
    deeper = run(4, 4)
    late = Moment("export", "cpu", "d.py:4")
    more = Measured(deeper.extent, 32, {**deeper.moments, late: 7}, {})
    moments, _ = carry(run(2, 4), [more], Extent(32, 4))
    assert moments[late] == 7


def test_another_line_may_set_the_peak_of_the_whole_run() -> None:
    few = by_stage(run(2, 4).moments)
    whole = by_stage(carry(run(2, 4), [run(4, 4), run(2, 8)], Extent(32, 200))[0])
    assert few["prune", HOST] == Peak(400, "c.py:3")
    assert whole["prune", HOST] == Peak(632, "b.py:2")


def test_stages_are_in_the_order_of_a_run_and_devices_apart() -> None:
    moments = {
        Moment("export", "cpu", "x:1"): 1,
        Moment("load", "pretended", "x:2"): 2,
        Moment("load", "cpu", "x:3"): 3,
        Moment("", "cpu", "x:4"): 99,
    }
    assert list(by_stage(moments)) == [("load", DEVICE), ("load", HOST), ("export", HOST)]


@pytest.mark.parametrize(("fits", "name"), [(True, "repair: start"), (False, "repair")])
def test_what_a_method_does_before_its_fit_is_its_start(fits: bool, name: str) -> None:
    moments = {Moment("repair", "cpu", "x:1"): 5}
    if fits:
        moments[Moment("repair: fit", "cpu", "x:2")] = 6
    assert by_stage(moments)[name, HOST].bytes == 5


def test_a_run_that_happens_to_hold_less_takes_nothing_away() -> None:
    """Carried on to thirty times as much, its difference would make a peak of nothing."""
    less = run(2, 8)
    smaller = {moment: size - 1 for moment, size in run(2, 4).moments.items()}
    moments, _ = carry(run(2, 4), [Measured(less.extent, less.depth, smaller, {})], Extent(2, 128))
    assert moments == run(2, 4).moments

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tqdm import tqdm

from sparsemend import terminal
from sparsemend.terminal import (
    RUN_WIDTH,
    BarLines,
    LogFile,
    StageLines,
    console,
    duration,
    track,
)


def test_a_log_file_gets_the_asked_width(capsys) -> None:
    console(RUN_WIDTH).print("a " * 60)
    assert [len(line.rstrip()) for line in capsys.readouterr().out.splitlines()] == [99, 19]


class Clock:
    """A clock that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    held = Clock()
    caplog.set_level(logging.INFO, "sparsemend")
    monkeypatch.setattr(terminal, "monotonic", held)
    monkeypatch.setattr(StageLines, "latest", None)
    return held


def test_a_log_file_gets_a_line_every_30_seconds_with_pace_and_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in track(list(range(10)), "perplexity", tokens=10 * 2048):
        clock.now += 12
    assert caplog.messages == [
        "perplexity 3/10  171 tokens/s  84 s left",
        "perplexity 6/10  171 tokens/s  48 s left",
        "perplexity 9/10  171 tokens/s  12 s left",
    ]


def test_short_stages_share_a_clock_so_that_many_of_them_are_not_silent(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for block in range(3):
        for _ in track(list(range(2)), f"block {block}"):
            clock.now += 10
    assert caplog.messages == ["block 1 1/2  10 s left", "block 2 2/2  0 s left"]


def test_a_stage_that_goes_on_counts_what_was_done_before_it(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in track(list(range(4)), "perplexity", tokens=400, total=10):
        clock.now += 30
    assert caplog.messages[0] == "perplexity 7/10  3 tokens/s  90 s left"
    assert caplog.messages[-1] == "perplexity 10/10  3 tokens/s  0 s left"


def test_a_terminal_gets_bars_and_no_lines(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    for _ in track([1, 2], "perplexity"):
        clock.now += 60
    StageLines("blocks", 3).tick(1)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (119, "119 s"), (150, "2 min"), (8000, "2 h 13 min")]
)
def test_a_duration_is_as_coarse_as_it_is_long(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bars_of_a_library_become_lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    stream = BarLines("zero_shot")
    with tqdm(total=100, desc="Running requests", file=stream, mininterval=0) as bar:
        for _ in range(4):
            clock.now += 20
            bar.update(20)
    assert stream.getvalue() == ""
    assert caplog.messages == [
        "zero_shot: Running requests 40/100  60 s left",
        "zero_shot: Running requests 80/100  20 s left",
    ]


@pytest.mark.parametrize("place", ["/dev/full", "absent/run.log"])
def test_a_log_file_that_takes_nothing_says_so_once(place: str, capfd) -> None:
    handler = LogFile(place, delay=True)
    record = logging.makeLogRecord({"msg": "a line"})
    handler.handle(record)
    handler.handle(record)
    printed = capfd.readouterr().err
    assert printed.count("takes no more lines: ") == 1
    assert len(printed.splitlines()) == 1


def test_a_log_line_that_cannot_be_formatted_still_shows_where(tmp_path: Path, capfd) -> None:
    LogFile(tmp_path / "run.log").handle(logging.makeLogRecord({"msg": "%d", "args": ("a",)}))
    assert "Traceback" in capfd.readouterr().err

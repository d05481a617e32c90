"""Stages killed at random places go on to the bits of an undisturbed run; the table is of many."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from crash.attempts import Attempt, Mark, Moved, attempt_of, starter
from crash.faults import FAULTS, Ending, Fault, titled
from crash.kills import ROWS, Row, Trial, Trials, available, draw
from crash.table import KEEP, KILLS, Kept, fault_line, line, measure, page, provoke

# these are killed the same way as lors and seft
AS_OTHERS = ("repair: masked_lora", "repair: masked_full", "repair: spiel")
SLOW = [row for row in ROWS if row.title not in AS_OTHERS]
SLOW_FAULTS = titled(
    [
        "no file grows beyond a random size",
        "a shard without permission",
        "half of an earlier attempt's block",
        "two runs on one cache",
        "two runs in one folder, resume=null",
    ]
)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    with starter() as start:
        yield Trials(start, tmp_path_factory.mktemp("crash"))


def titles(entry: Row | Fault) -> str:
    return entry.title


@pytest.mark.slow
@pytest.mark.parametrize("row", SLOW, ids=titles)
def test_a_killed_stage_ends_with_the_bits_of_an_undisturbed_one(row: Row, trials: Trials) -> None:
    """At a random file, block call or byte of a file, the same on every machine."""
    if row not in available([row.title]):
        pytest.skip("its keys are not there")
    whole = trials.undisturbed(row)[0]
    stages = row.stages or {mark.stage for mark in whole.marks}
    kill = draw(random.Random(row.title), whole, sorted(stages), clock=False)
    trial = trials.trial(row, 0, kill=kill)
    assert trial.sound, trial
    assert trial.hit(row)
    assert trial.again <= (trial.of if row.most is None else row.most)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW_FAULTS, ids=titles)
def test_a_fault_ends_in_one_line_and_the_next_attempt_works(fault: Fault, trials: Trials) -> None:
    assert fault.ending(trials, 0).wrong == []


@pytest.fixture(scope="module")
def kept_trials() -> Iterator[tuple[Trials, Kept]]:
    """Trials in the folder of the table, which go on where they were."""
    KEEP.mkdir(parents=True, exist_ok=True)
    with starter() as start:
        yield Trials(start, KEEP), Kept(KEEP)


@pytest.mark.crash
@pytest.mark.parametrize("row", ROWS, ids=titles)
def test_many_kills_of_a_stage_all_end_with_the_bits_of_an_undisturbed_one(
    row: Row, kept_trials: tuple[Trials, Kept]
) -> None:
    if row not in available([row.title]):
        pytest.skip("its keys are not there")
    trials, kept = kept_trials
    list(measure(trials, kept, row, KILLS))
    assert [trial for trial in kept.of(row) if not trial.sound] == []


@pytest.mark.crash
@pytest.mark.parametrize("fault", FAULTS, ids=titles)
def test_every_fault_ends_in_one_line(fault: Fault, kept_trials: tuple[Trials, Kept]) -> None:
    if not fault.possible():
        pytest.skip("not possible here")
    trials, kept = kept_trials
    list(provoke(trials, kept, fault))
    assert [ending for ending in kept.endings_of(fault) if ending.wrong] == []


# How kills are drawn, and what the table makes of them


def whole() -> Attempt:
    marks = [Mark("load", 0, 0, 0.0), Mark("prune", 3, 9, 1.0), Mark("export", 3, 30, 2.0)]
    moves = [Moved(0, "result.json", 50), Moved(2, "masks.safetensors", 1000)]
    return Attempt(0, "", marks, moves, files=8, passes=30, seconds=2.5)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("load", {"files": (1, 3), "passes": (1, 9), "seconds": (0, 1), "bytes": (1, 49)}),
        ("prune", {"passes": (10, 30), "seconds": (1, 2)}),
        ("export", {"files": (4, 8), "seconds": (2, 2.5), "bytes": (1, 999)}),
    ],
)
def test_kills_are_drawn_inside_their_stage_by_all_that_happens_in_it(
    stage: str, expected: dict[str, tuple[float, float]]
) -> None:
    generator = random.Random(0)
    drawn = [draw(generator, whole(), [stage]) for _ in range(200)]
    assert {kill.by for kill in drawn} == set(expected)
    for kill in drawn:
        low, high = expected[kill.by]
        assert low <= kill.at <= high
    assert {kill.after for kill in drawn if kill.by == "bytes"} <= {0, 2}
    assert all(kill.by != "seconds" for kill in (draw(generator, whole(), [stage], clock=False),))


def test_an_attempt_is_read_from_what_it_wrote() -> None:
    lines = [["load", 0, 0, 0.1], [None, "a", 7], ["prune", 1, 2, 0.2]]
    attempt = attempt_of(lines, code=-9, said="", files=1, passes=2, seconds=0.3)
    assert (attempt.killed, attempt.stage) == (True, "prune")
    assert attempt.moves == [Moved(0, "a", 7)]
    assert attempt.written_in(["prune"]) == []


def test_a_table_goes_on_after_the_trials_it_has_and_counts_what_hit(tmp_path: Path) -> None:
    row = ROWS[1]
    made = iter(
        [
            Trial(row.title, 0, [["prune", "files", 3]], again=5, of=52),
            Trial(row.title, 1, [["repair", "seconds", 0.1]]),  # a moment late
            Trial(row.title, 2, [["prune", "files", 3], ["load", "files", 1]], again=50, of=52),
        ]
    )

    class Made:
        def trial(self, row: Row, number: int) -> Trial:
            return next(made)

    first = measure(Made(), Kept(tmp_path), row, 2)  # type: ignore[arg-type]
    next(first)
    kept = Kept(tmp_path)
    assert [trial.number for trial in measure(Made(), kept, row, 2)] == [1, 2]  # type: ignore[arg-type]
    hits = [trial for trial in Kept(tmp_path).of(row) if trial.hit(row)]
    assert line(row, hits) == f"| {row.title} | 2 | 2 of 2 | 5 | 52 | {row.kept} |"
    spoilt = replace(hits[0], unequal=["result.json metrics"])
    assert "| 1 of 2 |" in line(row, [spoilt, hits[1]])
    assert "2 of 2 such trials" in page(kept, ROWS)


def test_a_line_of_the_faults_leaves_out_what_changes_from_run_to_run() -> None:
    said = "disk/2026-11-28_16-20-19_19050/run.log: the disk is full ([Errno 28] No (x)); make room"
    endings = [Ending(FAULTS[0].title, 0, said), Ending(FAULTS[0].title, 1, "", ["left: .a"])]
    shown = "disk/.../run.log: the disk is full; make room; it went on, and did again what was lost"
    assert fault_line(FAULTS[0], endings) == f"| {FAULTS[0].title} | 2 | 1 of 2 | {shown} |"

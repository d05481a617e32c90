"""The arena from its command: rows of one pruned model, budgets, and going on after a stop."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from support.command_runs import cells_of, put_workspace, result_of, sparsemend_here, sweep_files
from support.tiers import slow_but_for

from sparsemend.files import write_json
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.arena import sweeper
from sparsemend.sweep.arena.sweeper import CostLine, fit_of, pilot_seconds

SHORT = ("experiment=arena", "evaluation=[perplexity]", "arena.steps=5")


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sweep_files(put_workspace(tmp_path_factory.mktemp("workspace")))


def arena(folder: Path, *arguments: str) -> str:
    """What an arena says that ends well, in `folder`/out."""
    done = sparsemend_here([*arguments, f"hydra.sweep.dir={folder / 'out'}"], folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def arena_csv(folder: Path) -> dict[str, dict[str, str]]:
    return {row["row"]: row for row in csv.DictReader((folder / "arena.csv").open())}


@pytest.mark.parametrize(
    "rows", slow_but_for(["none,lors", "none,lors,dsnot,masked_full"], ["none,lors"])
)
def test_rows_prune_once_and_end_in_a_table(common: list[str], tmp_path: Path, rows: str) -> None:
    names = rows.split(",")
    said = arena(tmp_path, *common, *SHORT, f"arena={rows}", "arena.rank=2")
    folder = tmp_path / "out"
    assert "best within the budget:" in said
    table = arena_csv(folder)
    assert set(table) == {"dense", *names}
    trained = [row for row in names if row in ("lors", "masked_full")]
    assert {float(table[row]["tokens"]) for row in trained} == {320.0}
    assert all(float(row["sparsity"]) >= 0.59 for name, row in table.items() if name != "dense")
    assert int(float(table["none"]["trained"])) == 0
    cells = cells_of(folder)
    assert len(cells) == 2 * len(names)  # two seeds
    hits = [content["cache"]["pruned"]["hit"] for content in cells.values()]
    assert hits == 2 * [False, *[True] * (len(names) - 1)]
    for number, content in cells.items():
        losses = read_losses(folder / str(number), "repaired", "perplexity/test")
        value = content["metrics"]["repaired"]["perplexity/test"]
        assert value == pytest.approx(math.exp(losses.mean()), rel=1e-6)
    assert (folder / "arena.png").stat().st_size > 1000


@pytest.mark.slow  # the length of a row is that of the tests of Fit below
def test_a_budget_of_seconds_sets_the_steps(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pilots of 3 and 9 steps that took 1.5 s and 4.5 s: half a second a step, so 2 s are four."""

    def seconds(folder: Path) -> float | None:
        measured = pilot_seconds(folder)
        return None if measured is None else result_of(folder)["repair"]["steps"] / 2

    monkeypatch.setattr(sweeper, "pilot_seconds", seconds)
    asked = [*common, *SHORT, "arena=none,lors", "seed=0", "budget=seconds", "arena.rank=2"]
    # one validation, at the end: none stops a fit before
    asked += ["arena.seconds=2", "arena.validate_every=10000", "arena.pilots=[3,9]"]
    arena(tmp_path, *asked)
    folder = tmp_path / "out"
    cells = cells_of(folder)
    assert list(cells) == [0, 1, 2, 3]  # two rows, two pilots
    assert [cells[number]["repair"]["steps"] for number in (1, 2, 3)] == [4, 3, 9]
    assert cells[1]["config"]["method"]["max_steps"] == 4
    assert float(arena_csv(folder)["lors"]["share_of_budget"]) > 0  # how much is the clock's affair
    assert sorted(arena_csv(folder)) == ["dense", "lors", "none"]  # no pilot
    said = arena(tmp_path, *asked)  # again: pilots and rows are there
    assert said.count("finished earlier, not run again") == 4
    assert cells_of(folder) == cells


@pytest.mark.slow  # as any sweep does, see test_cells
def test_a_stopped_arena_goes_on(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*common, *SHORT, "arena=none,dsnot,lors", "seed=0"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsemend.method.dsnot.dsnot.DSnoT.repair", interrupted)
    stopped = sparsemend_here([*asked, f"hydra.sweep.dir={tmp_path / 'out'}"], tmp_path)
    assert stopped.returncode == 130
    monkeypatch.undo()
    said = arena(tmp_path, *asked)
    assert said.count("finished earlier, not run again") == 1
    cells = cells_of(tmp_path / "out")
    assert [cell["status"] for cell in cells.values()] == ["finished"] * 3
    assert set(arena_csv(tmp_path / "out")) == {"dense", "none", "dsnot", "lors"}


def test_pilots_that_say_nothing_of_a_step_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arena = {"row": "lors", "length": "method.max_steps", "seconds": 30.0}
    assert fit_of(arena, {}) is None
    assert fit_of(arena, {30: 2.0}) is None
    assert caplog.text.count("two are needed") == 2
    flat = fit_of(arena, {30: 2.0, 90: 1.9})
    assert flat is not None
    assert flat.length == 30
    assert "give longer arena.pilots" in caplog.text
    content = {"status": "finished", "config": {}, "cost": {"repair": {"seconds": 2.0}}}
    write_json(tmp_path / "result.json", content)
    assert pilot_seconds(tmp_path) == 2.0
    write_json(tmp_path / "result.json", {**content, "earlier_attempts": [{}]})
    assert pilot_seconds(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "budget", "length"),
    [
        ({10: 3.0, 30: 7.0}, 21.0, 100),  # 1 s, and 0.2 s a step
        ({10: 3.0, 30: 7.0}, 2.0, 10),  # what is too short for the shorter pilot is that pilot
        ({10: 3.0, 30: 2.9}, 21.0, 10),  # noise: nothing is known of a step
        ({10: 3.0}, 21.0, 10),
    ],
)
def test_a_line_through_the_pilots_gives_the_length(
    seconds: dict[int, float], budget: float, length: int
) -> None:
    assert CostLine("method.max_steps", budget, seconds).length == length

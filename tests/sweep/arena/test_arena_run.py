"""The arena from its command: rows of one pruned model, budgets, and going on after a kill."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from support.real_sweeps import finish, kill_once, results, start, tokens_run

from sparsemend.files import write_json
from sparsemend.result.window_losses import read_losses
from sparsemend.sweep.arena.sweeper import CostLine, fit_of, pilot_seconds

SHORT = ("experiment=arena", "evaluation=[perplexity]", "arena.steps=5")


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tokens_run(tmp_path_factory.mktemp("workspace"))


def arena_csv(folder: Path) -> dict[str, dict[str, str]]:
    return {row["row"]: row for row in csv.DictReader((folder / "arena.csv").open())}


def test_rows_prune_once_and_end_in_a_table(common: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    rows = "arena=none,lors,dsnot,masked_full"
    said = finish([*common, *SHORT, rows, "arena.rank=2", f"hydra.sweep.dir={folder}"], tmp_path)
    assert "best within the budget:" in said
    table = arena_csv(folder)
    assert set(table) == {"dense", "none", "lors", "dsnot", "masked_full"}
    assert {float(table[row]["tokens"]) for row in ("lors", "masked_full")} == {320.0}
    assert all(float(row["sparsity"]) >= 0.59 for name, row in table.items() if name != "dense")
    assert int(float(table["none"]["trained"])) == 0
    found = results(folder)
    assert len(found) == 8  # two seeds
    hits = [content["cache"]["pruned"]["hit"] for content in found]
    assert hits == 2 * [False, True, True, True]
    for number, content in enumerate(found):
        losses = read_losses(folder / str(number), "repaired", "perplexity/test")
        value = content["metrics"]["repaired"]["perplexity/test"]
        assert value == pytest.approx(math.exp(losses.mean()), rel=1e-6)
    assert (folder / "arena.png").stat().st_size > 1000


def test_a_budget_of_seconds_sets_the_steps(common: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    asked = [*common, *SHORT, "arena=none,lors", "seed=0", "budget=seconds", "arena.rank=2"]
    # one validation, at the end: none stops a fit before
    asked += ["arena.seconds=2", "arena.validate_every=10000", "arena.pilots=[30,120]"]
    asked += [f"hydra.sweep.dir={folder}"]
    finish(asked, tmp_path)
    found = results(folder)
    assert len(found) == 4  # two rows, two pilots
    pilots = {p["repair"]["steps"]: p["cost"]["repair"]["seconds"] for p in found[2:]}
    assert sorted(pilots) == [30, 120]
    steps = found[1]["config"]["method"]["max_steps"]
    assert steps == CostLine("method.max_steps", 2.0, pilots).length
    assert found[1]["repair"]["steps"] == steps
    assert float(arena_csv(folder)["lors"]["share_of_budget"]) > 0  # how much is the clock's affair
    assert sorted(arena_csv(folder)) == ["dense", "lors", "none"]  # no pilot
    before = found[1]["seconds"]
    said = finish(asked, tmp_path)  # again: pilots and rows are known
    assert said.count("finished earlier, not run again") == 4
    assert results(folder)[1]["seconds"] == before


def test_a_killed_arena_goes_on(common: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    asked = [*common, *SHORT, "arena=none,dsnot,lors", "seed=0", f"hydra.sweep.dir={folder}"]
    done = kill_once(start(asked, tmp_path), folder, finished=1)
    said = finish(asked, tmp_path)
    assert said.count("finished earlier, not run again") == len(done)
    assert [result["status"] for result in results(folder)] == ["finished"] * 3
    assert set(arena_csv(folder)) == {"dense", "none", "dsnot", "lors"}


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
    content = {"status": "finished", "cost": {"repair": {"seconds": 2.0}}}
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

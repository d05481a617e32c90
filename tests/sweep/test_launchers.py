"""Real sweeps of real runs: a kill, a resumed search, and launchers that agree bit for bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.real_sweeps import finish, kill_once, results, start, tokens_run


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tokens_run(tmp_path_factory.mktemp("workspace"))


def weights(cell: Path) -> dict[str, torch.Tensor]:
    return load_file(cell / "model" / "model.safetensors")


CELLS = ("method=none,dsnot", "sparsity=0.5,0.7")


@pytest.fixture(scope="module")
def basic(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep by the basic launcher that shares nothing."""
    folder = tmp_path_factory.mktemp("basic")
    finish([*common, *CELLS, "hydra.sweep.dir=sweep", "cache=off"], folder)
    return folder / "sweep"


def assert_same_cells(basic: Path, other: Path, *, count: int) -> None:
    """Every cell of `other` has the numbers and the weights of the same cell of `basic`."""
    known = {result["config_hash"]: number for number, result in enumerate(results(basic))}
    found = results(other)
    assert len(found) == count
    for number, result in enumerate(found):
        cell = known[result["config_hash"]]
        assert result["status"] == "finished"
        assert result["metrics"] == results(basic)[cell]["metrics"]
        mine, theirs = weights(basic / str(cell)), weights(other / str(number))
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize(
    "launcher",
    [("hydra/launcher=workers",), ("hydra/launcher=submitit_local",)],
    ids=["joblib", "submitit_local"],
)
def test_parallel_launchers_sharing_a_cache_give_the_bits_of_the_basic_one(
    basic: Path, common: list[str], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    cells = ("method=none,dsnot", "sparsity=0.7", "hydra.sweep.dir=sweep")
    finish([*common, *cells, *launcher], tmp_path)
    assert_same_cells(basic, tmp_path / "sweep", count=2)
    pruned = [result["cache"]["pruned"] for result in results(tmp_path / "sweep")]
    assert sorted(origin["hit"] for origin in pruned) == [False, True]  # one computed, one waited
    assert pruned[0]["made_by"] == pruned[1]["made_by"]


def test_a_sweep_killed_half_way_goes_on_with_the_missing_cells(
    basic: Path, common: list[str], tmp_path: Path
) -> None:
    lines = [*common, *CELLS, "hydra.sweep.dir=sweep"]
    done = kill_once(start(lines, tmp_path), tmp_path / "sweep", finished=2)
    before = {path: path.stat().st_mtime_ns for path in done}
    assert 2 <= len(before) < 4
    said = finish(lines, tmp_path)
    assert said.count("finished earlier, not run again") == len(before)
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert_same_cells(basic, tmp_path / "sweep", count=4)
    table = list(csv.DictReader((tmp_path / "sweep" / "summary.csv").open()))
    assert [row["status"] for row in table] == ["finished"] * 4


def test_a_search_killed_half_way_goes_on_and_its_trials_equal_single_runs(
    common: list[str], tmp_path: Path
) -> None:
    """With statistics=dense, so that the cell that repeats the best point exactly is seen too."""
    folder = tmp_path / "search"
    lines = [*common, "+search=atp_common_difference", "search.count=4", "sparsity=0.7"]
    lines += ["statistics=dense", f"hydra.sweep.dir={folder}"]
    done = kill_once(start(lines, tmp_path), folder, finished=2)
    before = {path: path.stat().st_mtime_ns for path in done}
    said = finish(lines, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert "best: sparsemend sparsity_schedule=atp" in said
    assert "statistics=dense: test" in said
    assert (folder / "search.png").exists()

    finished = [result for result in results(folder) if result["status"] == "finished"]
    assert [r["protocol"]["statistics"] for r in finished] == ["dense"] * 5 + ["exact"]
    difference = [r["config"]["sparsity_schedule"]["common_difference"] for r in finished]
    assert difference[:5] == sorted(set(difference))
    last = finished[4]
    assert last["cache"]["memory"]["model"]["hit"]
    assert last["cache"]["memory"]["statistics"]["hit"]

    overrides = ("method=none", "sparsity=0.7", "statistics=dense", "sparsity_schedule=atp")
    single = [
        *common[1:],
        *overrides,
        f"sparsity_schedule.common_difference={difference[4]}",
        "evaluation.perplexity.validation=true",
        f"hydra.run.dir={tmp_path / 'single'}",
    ]
    finish(single, tmp_path)
    alone = json.loads((tmp_path / "single" / "result.json").read_text())
    assert alone["metrics"] == last["metrics"]
    number = results(folder).index(last)
    mine, theirs = weights(tmp_path / "single"), weights(folder / str(number))
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []

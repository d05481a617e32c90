"""Real sweeps and searches of real runs: numbers of single runs, kills, launchers that agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_runs import (
    cells_of,
    put_workspace,
    result_of,
    sparsemend_command,
    sparsemend_here,
    sweep_files,
    weights_of,
)
from support.contracts import assert_same_bits

CELLS = ("method=none,dsnot", "sparsity=0.5,0.7")


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sweep_files(put_workspace(tmp_path_factory.mktemp("workspace")))


@pytest.fixture(scope="module")
def basic(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep by the basic launcher that shares nothing."""
    folder = tmp_path_factory.mktemp("basic")
    here(folder, *common, *CELLS, "hydra.sweep.dir=sweep", "cache=off")
    return folder / "sweep"


def here(folder: Path, *arguments: str) -> str:
    """What the command says that ends well."""
    done = sparsemend_here(arguments, folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def assert_same_cells(basic: Path, other: Path, *, count: int) -> None:
    """Every cell of `other` has the numbers and the weights of the same cell of `basic`."""
    numbers = {result["config_hash"]: number for number, result in cells_of(basic).items()}
    cells = cells_of(other)
    assert len(cells) == count
    for number, result in cells.items():
        same = basic / str(numbers[result["config_hash"]])
        assert result["status"] == "finished"
        assert result["metrics"] == result_of(same)["metrics"]
        assert_same_bits(weights_of(same), weights_of(other / str(number)))


@pytest.mark.slow  # run/test_shared has it stage by stage
def test_cells_that_share_a_cache_have_the_bits_of_those_that_share_nothing(
    basic: Path, common: list[str], tmp_path: Path
) -> None:
    here(tmp_path, *common, *CELLS, "hydra.sweep.dir=sweep")
    assert_same_cells(basic, tmp_path / "sweep", count=4)
    pruned = [cell["cache"]["pruned"]["hit"] for cell in cells_of(tmp_path / "sweep").values()]
    assert pruned == [False, False, True, True]  # sparsity varies fastest


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["workers", "submitit_local"])
def test_parallel_launchers_sharing_a_cache_give_the_bits_of_the_basic_one(
    basic: Path, common: list[str], tmp_path: Path, launcher: str
) -> None:
    cells = ("method=none,dsnot", "sparsity=0.7", "hydra.sweep.dir=sweep")
    done = sparsemend_command([*common, *cells, f"hydra/launcher={launcher}"], tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert_same_cells(basic, tmp_path / "sweep", count=2)
    pruned = [cell["cache"]["pruned"] for cell in cells_of(tmp_path / "sweep").values()]
    assert sorted(origin["hit"] for origin in pruned) == [False, True]  # one computed, one waited
    assert pruned[0]["made_by"] == pruned[1]["made_by"]


SEARCH = ("+search=atp_common_difference", "search.count=3", "sparsity=0.7", "statistics=dense")
DIFFERENCE = "sparsity_schedule.common_difference"


@pytest.fixture(scope="module")
def searched(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four trials, and the cell that repeats the best point exactly."""
    folder = tmp_path_factory.mktemp("search")
    said = here(folder, *common, *SEARCH, f"hydra.sweep.dir={folder / 'out'}")
    assert "best: sparsemend sparsity_schedule=atp method=none" in said
    assert "statistics=dense: test" in said
    return folder / "out"


def difference(cell: dict) -> float:
    return float(cell["config"]["sparsity_schedule"]["common_difference"])


@pytest.mark.slow  # a search by hand-made objectives is tested in test_search
def test_the_trials_of_a_search_equal_single_runs(
    searched: Path, common: list[str], tmp_path: Path
) -> None:
    cells = cells_of(searched)
    assert [c["protocol"]["statistics"] for c in cells.values()] == ["dense"] * 4 + ["exact"]
    differences = [difference(cells[number]) for number in range(4)]
    assert differences == sorted(set(differences))
    assert cells[3]["cache"]["memory"]["model"]["hit"]
    assert cells[3]["cache"]["memory"]["statistics"]["hit"]
    assert (searched / "search.png").exists()

    here(
        tmp_path,
        *common[1:],
        "method=none",
        "sparsity=0.7",
        "statistics=dense",
        "sparsity_schedule=atp",
        f"{DIFFERENCE}={differences[3]}",
        "rounding=exact_budget",
        "evaluation.perplexity.validation=true",
        f"hydra.run.dir={tmp_path / 'single'}",
    )
    assert result_of(tmp_path / "single")["metrics"] == cells[3]["metrics"]
    assert_same_bits(weights_of(tmp_path / "single"), weights_of(searched / "3"))

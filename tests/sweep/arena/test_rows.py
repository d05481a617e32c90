"""The arena: rows from run folders, budgets, who is best, what cannot share a table, the files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import result_folders

from sparsemend.cli.tables import main
from sparsemend.config.members import member_yaml
from sparsemend.result.window_losses import write_losses
from sparsemend.sweep.arena.plot import spread
from sparsemend.sweep.arena.rows import pareto, read_arena
from sparsemend.sweep.arena.table import arena_line, body, notes, write

METRIC = "perplexity/test"
GIVEN = {"steps": 5, "windows_per_step": 2}


def cell(
    root: Path,
    row: str,
    seed: int,
    perplexity: float,
    *,
    tokens: int = 1000,
    trained: int = 500,
    seconds: float = 10.0,
    foldable: bool = True,
    budget: str = "tokens",
    pilot: bool = False,
    **changes: Any,
) -> Path:
    """A finished cell with 8 test windows, whose losses differ by window but not by seed."""
    content = result_folders.result(repaired=perplexity, seed=seed, method="masked_lora", **changes)
    content["config"]["method"] |= {"_target_": member_yaml("method", row)["_target_"]}
    content["config"] |= {
        "arena": {"row": row, "pilot": pilot, **GIVEN, "seconds": 10.0},
        "budget": budget,
        "pattern": "unstructured",
        "evaluation": {"perplexity": {}, "zero_shot": {"limit": 4}},
    }
    content["metrics"]["repaired"]["zero_shot/mean"] = 0.5 + seed / 100
    content["repair"] = {"tokens": tokens, "foldable": foldable, "steps": 5, "windows_per_step": 2}
    content["cost"]["repair"] = {
        "seconds": seconds,
        "peak_bytes": 2**20,
        "trained_parameters": trained,
    }
    content["sparsity"]["effective"] = 0.6 if foldable else 0.0
    folder = result_folders.write(root / f"{row}_{seed}{'_pilot' if pilot else ''}", content)
    windows = torch.linspace(-0.5, 0.5, 8)
    mean = torch.tensor(perplexity).log()
    write_losses(folder, "repaired", {METRIC: mean + windows})
    return folder


def arena_of(root: Path, **rows: Any) -> Any:
    for row, given in rows.items():
        for seed in (0, 1):
            cell(root, row, seed, **given)
    return read_arena([root])


def test_rows_are_ordered_by_mean_perplexity_and_compared_with_the_best(tmp_path: Path) -> None:
    arena = arena_of(tmp_path, lors={"perplexity": 20.0}, masked_lora={"perplexity": 16.0})
    assert [entry.row for entry in arena.entries] == ["masked_lora", "lors"]
    assert arena.best.row == "masked_lora"
    ratio = arena.ratios["lors"]
    assert (ratio.mean, ratio.differs) == (pytest.approx(1.25, rel=1e-6), True)
    assert "masked_lora" not in arena.ratios


def test_a_row_above_the_budget_or_with_an_open_adapter_is_not_the_best(tmp_path: Path) -> None:
    arena = arena_of(
        tmp_path,
        lors={"perplexity": 20.0},
        masked_full={"perplexity": 10.0, "tokens": 1100},
        lora={"perplexity": 12.0, "foldable": False},
    )
    assert arena.best.row == "lors"
    assert arena.amount == 1000  # steps * windows_per_step windows of 100 tokens
    assert [arena.within(entry) for entry in arena.entries] == [False, True, True]


@pytest.mark.parametrize(
    ("budget", "key", "amount"), [("trainable", "trained", 500), ("seconds", "seconds", 10)]
)
def test_the_budget_may_be_parameters_or_seconds(
    tmp_path: Path, budget: str, key: str, amount: float
) -> None:
    arena = arena_of(
        tmp_path,
        lors={"perplexity": 20.0, "budget": budget},
        spp={"perplexity": 15.0, "budget": budget, key: amount * 2},
    )
    assert arena.amount == amount
    assert {e.row: arena.share(e) for e in arena.entries} == {"spp": 2.0, "lors": 1.0}
    assert arena.best.row == "lors"


def test_pilots_are_no_rows(tmp_path: Path) -> None:
    cell(tmp_path, "lors", 0, 20.0, pilot=True)
    with pytest.raises(ValueError, match="no row of an arena"):
        read_arena([tmp_path])
    cell(tmp_path, "spp", 0, 25.0)
    assert [entry.row for entry in read_arena([tmp_path]).entries] == ["spp"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"protocol": {"seqlen": 128}}, "256 tokens a window.*128 tokens a window"),
        ({"sparsity": 0.7}, "differ in sparsity: 0.6 there, 0.7 here\n  there: .*lors_0"),
        ({"budget": "seconds"}, "differ in budget"),
        ({"pruner": "magnitude"}, "differ in pruner"),
        ({"protocol": {"data_hash": "other"}}, "differ in data_hash"),
    ],
)
def test_two_settings_do_not_share_a_table(tmp_path: Path, changes: Any, named: str) -> None:
    cell(tmp_path, "lors", 0, 20.0)
    cell(tmp_path, "spp", 0, 20.0, **changes)
    with pytest.raises(ValueError, match=f"(?s){named}"):
        read_arena([tmp_path])


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "result.json").read_text())
    change(content)
    (folder / "result.json").write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["steps", "windows_per_step"])
def test_arenas_of_another_length_do_not_share_a_table(tmp_path: Path, key: str) -> None:
    cell(tmp_path, "lors", 0, 20.0)
    other = cell(tmp_path, "spp", 0, 20.0)
    changed(other, lambda content: content["config"]["arena"].update({key: 9}))
    with pytest.raises(ValueError, match=rf"differ in arena\.{key}: . there, 9 here"):
        read_arena([tmp_path])


def test_one_row_and_seed_with_two_recipes_is_refused(tmp_path: Path) -> None:
    cell(tmp_path / "a", "lors", 0, 20.0)
    again = cell(tmp_path / "b", "lors", 0, 10.0)
    assert read_arena([tmp_path]).best.perplexity == 10.0  # the same once more: the later one
    changed(again, lambda content: content["config"]["method"].update(rank=99))
    with pytest.raises(ValueError, match=r"lors with seed 0 is there twice, .*method\.rank"):
        read_arena([tmp_path])


def test_a_row_without_every_seed_cannot_be_the_best(tmp_path: Path) -> None:
    cell(tmp_path, "spp", 0, 10.0)
    for seed in (0, 1):
        cell(tmp_path, "lors", seed, 20.0)
    arena = read_arena([tmp_path])
    assert [entry.row for entry in arena.entries] == ["spp", "lors"]
    assert arena.best.row == "lors"
    assert "spp: seed 0 alone, which cannot be the best" in notes(arena)


def test_where_no_row_may_be_the_best_that_is_said(tmp_path: Path) -> None:
    arena = arena_of(
        tmp_path,
        lors={"perplexity": 16.0, "tokens": 1100},
        spp={"perplexity": 20.0, "tokens": 1200},
    )
    changed(tmp_path / "lors_0", lambda content: content["repair"].update(steps=11))
    arena = read_arena([tmp_path])  # its windows have 50 tokens
    assert arena.amount == 500
    assert arena_line(arena) == "no row may be the best; lowest perplexity: lors"
    assert body(arena)[1][2] == "lowest"


def test_a_row_that_diverged_is_last_and_not_compared(tmp_path: Path) -> None:
    for row, perplexity in (("spp", float("nan")), ("lors", 20.0)):
        cell(tmp_path, row, 0, perplexity)
    arena = read_arena([tmp_path])
    assert [entry.row for entry in arena.entries] == ["lors", "spp"]
    assert arena_line(arena) == "best within the budget: lors; not compared with it: spp"
    assert body(arena)[2][1:4] == ["nan", "-", "-"]
    assert len(write(arena, tmp_path, "seconds")) == 5


def test_a_row_alone_that_is_no_repair_is_drawn_without_a_front(tmp_path: Path) -> None:
    cell(tmp_path, "none", 0, 20.0, tokens=0)
    write(read_arena([tmp_path]), tmp_path, "seconds")
    assert "<!-- - -->" not in (tmp_path / "arena.svg").read_text()  # no tick of that name


def test_a_continued_run_took_all_its_attempts(tmp_path: Path) -> None:
    folder = cell(tmp_path, "lors", 0, 20.0, seconds=0.4)
    done = {"prune": {"seconds": 1.0}, "repair": {"seconds": 500.0, "peak_bytes": 2**22}}
    changed(folder, lambda content: content.update(earlier_attempts=[done]))
    (entry,) = read_arena([tmp_path]).entries
    assert entry.cost("seconds") == 500.4
    assert entry.cost("peak_bytes") == 2**22
    assert not entry.partly_timed
    killed = {"prune": {"seconds": 1.0}}
    changed(folder, lambda content: content.update(earlier_attempts=[killed]))
    arena = read_arena([tmp_path])
    assert body(arena)[1][8] == "≥ 0.4"
    assert any("its seconds are not known" in note for note in notes(arena))


def test_parameters_without_a_low_rank_row_are_no_budget(tmp_path: Path) -> None:
    cell(tmp_path, "spp", 0, 20.0, budget="trainable")
    with pytest.raises(ValueError, match="none of them is here"):
        read_arena([tmp_path])


def test_a_checkpoint_that_was_pruned_already_is_not_called_dense(tmp_path: Path) -> None:
    cell(tmp_path, "lors", 0, 20.0, pruner="existing")
    arena = read_arena([tmp_path])
    assert (body(arena)[0][0], body(arena)[0][10]) == ("as loaded", "-")


def test_a_row_without_a_seed_of_the_best_is_compared_on_the_common_ones(tmp_path: Path) -> None:
    cell(tmp_path, "lors", 0, 16.0)
    cell(tmp_path, "lors", 1, 16.0)
    cell(tmp_path, "spp", 1, 20.0)
    assert read_arena([tmp_path]).ratios["spp"].mean == pytest.approx(1.25, rel=1e-6)


def test_the_front_has_who_is_not_beaten_in_both() -> None:
    points = {"a": (1.0, 9.0), "b": (2.0, 9.0), "c": (2.0, 5.0), "d": (3.0, 6.0), "e": (4.0, 1.0)}
    assert pareto(points) == ["a", "c", "e"]
    assert pareto({"x": (1.0, 1.0), "y": (1.0, 1.0)}) == ["x"]


def test_labels_keep_their_order_and_part(tmp_path: Path) -> None:
    heights = {"a": 0.50, "b": 0.505, "c": 0.51, "d": 0.9}
    found = spread(heights, 0.1)
    places = [found[name] for name in "abcd"]
    assert places == sorted(places)
    gaps = [high - low for low, high in pairwise(places)]
    assert min(gaps) >= 0.1 - 1e-12
    assert found["b"] == pytest.approx(0.505)  # the middle of its group
    assert found["d"] == 0.9
    assert min(spread({"a": 0.0, "b": 0.0, "c": 0.01}, 0.1).values()) >= 0


def test_the_table_says_what_every_row_took(tmp_path: Path) -> None:
    arena = arena_of(
        tmp_path, lors={"perplexity": 16.0}, spp={"perplexity": 20.0, "tokens": 2000, "trained": 7}
    )
    dense, best, other = body(arena)
    assert dense[:2] == ["dense", "15.000 ± 0.000"]
    assert best[:3] == ["lors", "16.000 ± 0.000", "best"]
    assert best[4] == "0.505 ± 0.007"
    assert other[2:4] == ["1.250", "1.250 - 1.250*"]
    assert other[5:8] == ["2.00 (over)", "7", "2,000"]
    assert any("first 4 items" in note for note in notes(arena))


def test_the_table_says_what_a_start_reads_beside_the_steps(tmp_path: Path) -> None:
    for init in ("kaiming", "grad_svd"):
        for seed in (0, 1):
            path = cell(tmp_path, "lors", seed, 16.0) / "result.json"
            content = json.loads(path.read_text())
            content["config"]["method"] |= {"init": init, "init_samples": 128}
            path.write_text(json.dumps(content))
        lines = notes(read_arena([tmp_path]))
        said = "lors: its start reads 128 more windows, which its tokens leave out" in lines
        assert said == (init == "grad_svd")


def test_five_files_are_written(tmp_path: Path) -> None:
    arena = arena_of(tmp_path, lors={"perplexity": 16.0}, spp={"perplexity": 20.0})
    paths = write(arena, tmp_path / "out", "seconds")
    assert [path.name for path in paths] == [
        f"arena.{s}" for s in ("md", "tex", "csv", "png", "svg")
    ]
    assert all(path.stat().st_size > 100 for path in paths)
    rows = list(csv.DictReader((tmp_path / "out" / "arena.csv").open()))
    assert [row["row"] for row in rows] == ["dense", "lors", "spp"]
    assert float(rows[2]["ratio"]) == pytest.approx(1.25, rel=1e-6)
    text = (tmp_path / "out" / "arena.svg").read_text()
    assert "Pareto" in text


def test_the_command_writes_beside_the_runs(tmp_path: Path, capsys: Any) -> None:
    arena_of(tmp_path, lors={"perplexity": 16.0}, spp={"perplexity": 20.0})
    main(["arena", str(tmp_path), "--cost", "peak_bytes"])
    printed = capsys.readouterr().out
    assert "best within the budget: lors" in printed
    assert (tmp_path / "arena.png").exists()


def test_an_unknown_cost_names_the_nearest(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["arena", str(tmp_path), "--cost", "secnds"])
    assert stop.value.code == 2
    assert "nearest: seconds" in capsys.readouterr().err

"""What a claim compares is alike: text, machine, budget, and cells that count once and whole."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.claim_sweeps import (
    DSNOT,
    KEY,
    STATEMENT,
    cell,
    diverge,
    failure,
    override,
    rates,
    sweep,
)

from sparsemend.cli.tables import main
from sparsemend.result.window_losses import write_losses
from sparsemend.sweep.claims.keep import keep
from sparsemend.sweep.claims.page import page, write
from sparsemend.sweep.claims.plot import labels
from sparsemend.sweep.claims.read import read_claims
from sparsemend.sweep.claims.verdict_line import verdict_lines


def change(folder: Path, section: str, **values: Any) -> None:
    """Set values of a section of a cell's result."""
    path = folder / "result.json"
    content = json.loads(path.read_text())
    content[section] = content[section] | values
    path.write_text(json.dumps(content))


def choose(folder: Path, **rule: Any) -> None:
    """Set how a sweep chooses."""
    path = folder / "multirun.yaml"
    config = OmegaConf.load(path)
    config.hydra.sweeper.choose = {"key": KEY, "seed": 0, **rule}
    OmegaConf.save(config, path)


def sweep_schedules(searched: Path) -> None:
    """Let the cells have the overrides that a sweep over schedules gives them."""
    for number in ("0", "3"):
        override(searched / number, "sparsity_schedule=uniform")
    for number, value in (("1", 0.01), ("2", 0.02), ("4", 0.01)):
        override(searched / number, "sparsity_schedule=atp", f"{KEY}={value}")
    path = searched / "multirun.yaml"
    config = OmegaConf.load(path)
    config.hydra.sweeper.params["sparsity_schedule"] = "uniform,atp"
    OmegaConf.save(config, path)


def test_a_row_counts_once_all_its_values_were_tried(searched: Path) -> None:
    """0.01 is better than 0.02, and nothing below it was tried."""
    sweep_schedules(searched)
    choose(searched, points="bracket")
    assert "holds here so far (2 of 4 cells" in verdict_lines(read_claims([searched])[0])[0]
    rates(searched, 5, 0, 0.003, pruned=24.0, validation=20.5)
    override(searched / "5", "sparsity_schedule=atp", f"{KEY}=0.003")
    (claim,) = read_claims([searched])
    assert verdict_lines(claim)[0].count("holds here; x 0.787") == 1
    assert claim.judged[0].progress.missing == 0
    shutil.rmtree(searched / "4")  # of the chosen value
    rates(searched, 4, 1, 0.02, pruned=24.0)
    override(searched / "4", "sparsity_schedule=atp", f"{KEY}=0.02")
    assert "so far (3 of 4 cells" in verdict_lines(read_claims([searched])[0])[0]


def test_a_cost_is_of_the_value_that_perplexity_chose(searched: Path) -> None:
    """The chosen 0.01 takes 8 s, and 0.02, which has no rival for its cost, 2 s."""
    sweep(searched, {**STATEMENT, "measure": "step_seconds", "published": []}, key=KEY)
    for number, seconds in enumerate([4.0, 8.0, 2.0, 4.0, 8.0]):
        change(searched / str(number), "repair", step_seconds=seconds)
    (one,) = read_claims([searched])[0].judged
    assert one.effect is not None
    assert one.effect.mean == pytest.approx(2.0)
    change(searched / "1", "repair", step_seconds=None)
    assert read_claims([searched])[0].judged == ()  # one number of 0.01, none of 0.02


def test_a_setting_without_a_number_takes_no_weights_from_the_others(tmp_path: Path) -> None:
    """Windows count by their labels, though the first setting diverged on both sides."""
    statement = {**DSNOT, "measure": "perplexity/task", "rival": {"method": "seft"}, "beside": []}
    folder = sweep(tmp_path / "sweep", statement)
    number = 0
    for pruner in ("magnitude", "wanda"):
        for method in ("dsnot", "seft"):
            place = cell(folder / str(number), method=method, pruner=pruner)
            override(place, f"pruner={pruner}", f"method={method}")
            number += 1
            both = {"perplexity/task": 20.0, "perplexity/test": 20.0}
            change(place, "metrics", pruned=both, repaired=both)
            apart = torch.tensor([1.0, *[-0.1] * 7]) * (method == "dsnot")
            weights = torch.tensor([100.0, *[1.0] * 7])
            losses = {"perplexity/task": 3 + apart, "perplexity/task/weights": weights}
            write_losses(place, "repaired", losses)
            if pruner == "magnitude":
                diverge(place)
                shutil.rmtree(place / "window_losses")
    (one,) = read_claims([folder])[0].judged
    assert one.collapses == (1, 1, 2)
    assert one.effect is not None
    assert one.effect.mean == pytest.approx(math.exp((100 - 0.7) / 107))


def test_a_list_of_another_row_s_values_leaves_a_row_as_it_was(searched: Path) -> None:
    choose(searched, points=[0.05])
    (one,) = read_claims([searched])[0].judged
    assert one.effect is not None
    assert one.effect.mean == pytest.approx(math.sqrt(24 / 30 * 24 / 31))


@pytest.mark.parametrize("how", ["failed", "resumed"])
def test_a_trial_that_failed_and_one_that_went_on_are_trials(searched: Path, how: str) -> None:
    sweep_schedules(searched)
    choose(searched, points="bracket")
    rates(searched, 5, 0, 0.003, pruned=24.0, validation=20.5)
    more = ["resume=auto", "hardware.threads=2"] * (how == "resumed")
    override(searched / "5", "sparsity_schedule=atp", f"{KEY}=0.003", *more)
    if how == "failed":
        path = searched / "5" / "result.json"
        error = failure("OutOfMemoryError", "no memory")
        content = json.loads(path.read_text()) | {"status": "failed", "error": error}
        path.write_text(json.dumps(content))
    progress = read_claims([searched])[0].judged[0].progress
    assert (progress.measured, progress.planned) == (4, 4)


def test_a_list_is_one_value(moved: Path) -> None:
    path = moved / "multirun.yaml"
    config = OmegaConf.load(path)
    config.hydra.sweeper.params["method.round_steps"] = "[6,6,38]"
    OmegaConf.save(config, path)
    assert read_claims([moved])[0].judged[0].progress.planned == 2


def test_a_value_that_a_list_does_not_hold_counts_for_nothing(searched: Path) -> None:
    choose(searched, points=[0.02])
    rates(searched, 5, 1, 0.02, pruned=16.0)
    (claim,) = read_claims([searched])
    (comparison,) = claim.judged[0].comparisons
    assert comparison.effect is not None
    assert comparison.effect.mean == pytest.approx(math.sqrt(22 / 30 * 16 / 31))


def test_another_text_of_one_name_is_not_compared(searched: Path) -> None:
    change(searched / "3", "protocol", data_hash="1" * 64)
    with pytest.raises(ValueError, match=r"differ in data_hash \(0000.* and 1111"):
        read_claims([searched])


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """Seconds of DSnoT against those of another method, on two seeds."""
    statement = {**STATEMENT, "ours": {"method": "dsnot"}, "rival": {"method": "seft"}}
    folder = sweep(tmp_path / "timed", {**statement, "measure": "step_seconds", "published": []})
    for number, (method, seconds) in enumerate([("dsnot", 2.0), ("seft", 4.0)]):
        for seed in (0, 1):
            place = cell(folder / str(2 * number + seed), method=method, seed=seed)
            change(place, "repair", step_seconds=seconds)
    return folder


def test_seconds_of_two_machines_are_not_compared(timed: Path) -> None:
    (one,) = read_claims([timed])[0].judged
    assert (one.verdict, one.seeds) == ("holds here", (0, 1))
    assert one.comparisons[0].setting.label == "wanda 0.6, cpu, None threads, x"
    (here,) = one.comparisons
    there = replace(here, setting=replace(here.setting, machine="a card"))
    assert labels([here]) == ["wanda 0.6"]
    assert labels([here, there]) == ["wanda 0.6, cpu, None threads, x", "wanda 0.6, a card"]
    change(timed / "1", "provenance", device="a card", threads=1)
    assert read_claims([timed])[0].judged == ()  # one number has no interval
    change(timed / "3", "provenance", device="a card", threads=1)
    assert read_claims([timed])[0].judged == ()


def test_a_repair_that_trains_nothing_has_no_seconds_a_step(timed: Path) -> None:
    change(timed / "2", "repair", step_seconds=None)
    path = timed / "2" / "result.json"
    content = json.loads(path.read_text())
    content["earlier_attempts"] = [{"repair": {"seconds": 3.0, "peak_bytes": 1}}]
    path.write_text(json.dumps(content))
    (claim,) = read_claims([timed])
    assert claim.judged == ()
    assert claim.hours == pytest.approx((4 * 360 + 3) / 3600)
    assert claim.unmeasured == (
        f"{STATEMENT['says']}: not measured yet: no setting has both on two seeds",
    )


@pytest.mark.parametrize(
    ("budget", "section", "values", "said"),
    [
        ("tokens", "repair", {"tokens": 128}, "cell 0 has 64 read in training, cell 1 has 128"),
        ("trainable", "cost", {"repair": {"trained_parameters": 12}}, "cell 1 has 12 trained"),
    ],
)
def test_a_page_says_where_sides_had_no_equal_budget(
    moved: Path, budget: str, section: str, values: dict[str, Any], said: str
) -> None:
    for name in ("0", "1"):
        change(moved / name, "config", budget=budget)
        change(moved / name, "repair", tokens=64)
    assert "no equal budget" not in page(read_claims([moved])[0])
    cost = {"seconds": 2.0, "peak_bytes": 1}
    whole = {key: cost | value if key == "repair" else value for key, value in values.items()}
    change(moved / "1", section, **whole)
    assert said in page(read_claims([moved])[0])


def test_a_cell_that_diverged_and_later_finished_did_not_collapse(moved: Path) -> None:
    cell(moved / "2", method="dsnot", seed=1, pruned=30.0, repaired=20.0)
    diverge(moved / "1")
    (claim,) = read_claims([moved])
    assert (claim.judged[0].verdict, claim.judged[0].seeds) == ("holds here", (0, 1))
    assert claim.diverged == ()


def test_a_setting_in_which_all_collapsed_does_not_silence_the_others(moved: Path) -> None:
    for seed in (0, 1):
        cell(
            moved / f"{seed + 2}",
            method="dsnot",
            seed=seed,
            pruner="magnitude",
            pruned=2e5,
            repaired=3e5,
        )
        override(moved / f"{seed + 2}", "pruner=magnitude")
    (claim,) = read_claims([moved])
    (one,) = claim.judged
    assert (one.verdict, one.seeds, one.collapses) == ("holds here", (0, 1), (2, 2, 4))
    assert one.effect is not None
    assert one.effect.mean == pytest.approx(20 / 30)


def test_cells_of_two_folders_that_overlap_count_once(moved: Path) -> None:
    (claim,) = read_claims([moved, moved.parent])
    assert len(claim.runs) == 2


def test_a_cell_without_its_losses_is_refused(moved: Path) -> None:
    shutil.rmtree(moved / "1" / "window_losses")
    with pytest.raises(ValueError, match=r"sweep/1 has a perplexity/test and not its window_loss"):
        read_claims([moved])


def test_the_dense_perplexity_is_of_the_model_itself(moved: Path) -> None:
    cell(moved / "2", method="dsnot", model="other", dense=7.0)
    assert "other on python_docs 7.000, of " in page(read_claims([moved])[0])


def test_kept_cells_are_those_of_the_last_time(moved: Path, tmp_path: Path) -> None:
    keep(read_claims([moved]), tmp_path / "kept")
    change(moved / "1", "metrics", dense={"perplexity/test": 14.0})
    (home,) = keep(read_claims([moved]), tmp_path / "kept")
    assert "14.0" in (home / "1" / "result.json").read_text()
    shutil.rmtree(moved / "0")
    with pytest.raises(ValueError, match=r"holds cell 0 \(1 such\), which is not among"):
        keep(read_claims([moved]), tmp_path / "kept")
    shutil.rmtree(home / "0")
    (home / "1" / "masks.safetensors").touch()
    with pytest.raises(ValueError, match=r"masks\.safetensors is no part of a kept cell"):
        keep(read_claims([moved]), tmp_path / "kept")
    (home / "1" / "masks.safetensors").unlink()
    with pytest.raises(ValueError, match="is itself where its cells would be kept"):
        keep(read_claims([home]), tmp_path / "kept")
    assert (home / "1" / "result.json").is_file()


def test_a_page_of_another_kind_is_not_replaced(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Runs\n")
    with pytest.raises(SystemExit):
        main(["claims", str(moved), "--out", str(tmp_path)])
    assert "is another page than an index of claims; give --out" in capsys.readouterr().err
    assert readme.read_text() == "# Runs\n"


def test_what_nothing_measured_is_said_and_its_page_goes(moved: Path, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    write(read_claims([moved]), pages)
    assert (pages / "made_up.md").is_file()
    sweep(moved, {**DSNOT, "ours": {"row": "lorss"}})
    (claim,) = read_claims([moved])
    assert verdict_lines(claim) == ["moving zeros helps: not measured yet: no cell of row=lorss"]
    write([claim], pages)
    assert [path.name for path in pages.iterdir()] == ["README.md"]


def test_a_statement_about_text_counts_no_cell_of_a_task(tmp_path: Path) -> None:
    sides = {"ours": {"method": "dsnot", "task": False}, "rival": {"method": "none"}}
    folder = sweep(tmp_path / "sweep", {**DSNOT, **sides})
    for seed in (0, 1):
        place = cell(folder / str(seed), method="dsnot", seed=seed)
        change(place, "metrics", repaired={"perplexity/test": 20.0, "perplexity/task": 9.0})
    cell(folder / "2", method="dsnot", seed=0)
    override(folder / "2", "data=python_docs")
    (one,) = read_claims([folder])[0].judged
    assert (one.progress.measured, one.progress.planned) == (1, 2)

"""Variants: which rate counts, what is compared in pairs, what the verdict says."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from support import result_folders

from sparsemend.result.window_losses import write_losses
from sparsemend.sweep.variants.report import (
    HEADINGS,
    body,
    notes,
    read_variants,
    texts,
    verdict,
)

TASK = "perplexity/task"
WEIGHTS = torch.tensor([1.0, 3.0, 2.0, 2.0])  # labelled tokens of the four test examples
RATES = (1e-3, 1e-2, 1e-1)


def cell(
    root: Path, number: int, variant: str, rate: float, seed: int, loss: float, shift: float
) -> None:
    """A finished run whose test losses lie `shift` above 3, and a round with its losses."""
    content = result_folders.result(
        seed=seed, method="seft", knobs={"learning_rate": rate}, variant=variant
    )
    moments = {"loss_before": 4.0 + seed, "loss_moved": 3.5 + seed, "loss_settled": 3.75 + seed}
    content["repair"] = {
        "foldable": True,
        "validation/loss": loss,
        "beyond_budget": 7 if variant == "free" else 0,
        "evolution": {"rounds": [{"step": 5, **moments}]},
    }
    losses = 3 + shift + torch.tensor([-0.5, 0.1, 0.2, 0.2])
    mean = float((losses * WEIGHTS).sum() / WEIGHTS.sum())
    content["metrics"]["repaired"][TASK] = math.exp(mean)
    folder = result_folders.write(root / str(number), content)
    write_losses(folder, "repaired", {TASK: losses, f"{TASK}/weights": WEIGHTS})


def runs(root: Path, shifts: dict[str, float], best: float = 1e-2) -> Path:
    """Two seeds; with the second one each variant's best rate alone, as the sweeper does."""
    number = 0
    for seed in (0, 1):
        for variant, shift in shifts.items():
            for rate in RATES if seed == 0 else (best,):
                loss = 3.0 if rate == best else 3.5
                cell(root, number, variant, rate, seed, loss, shift if rate == best else 9.0)
                number += 1
    return root


def test_each_variant_counts_at_the_rate_of_its_lowest_validation_loss(tmp_path: Path) -> None:
    variants = read_variants([runs(tmp_path, {"fixed": 0.0, "evolve": 0.1, "free": -0.1})])
    assert [v.name for v in variants] == ["fixed", "evolve", "free"]
    assert [v.rate for v in variants] == [1e-2] * 3
    assert not variants[0].at_edge
    assert [[run.seed for run in v.runs] for v in variants] == [[0, 1]] * 3
    assert variants[0].validation == {1e-3: 3.5, 1e-2: 3.0, 1e-1: 3.5}
    lines = [dict(zip(HEADINGS, cells, strict=True)) for cells in body(variants)]
    assert [line["x first"] for line in lines] == ["-", "1.1052", "0.9048"]  # e^0.1, e^-0.1
    assert [line["beyond budget"] for line in lines] == ["-", "-", "7"]
    assert "free: denser than the others" in notes(variants)[-1]


def test_a_rate_at_the_end_of_the_grid_is_pointed_out(tmp_path: Path) -> None:
    (variant,) = read_variants([runs(tmp_path, {"fixed": 0.0}, best=1e-1)])
    assert variant.at_edge
    assert body([variant])[0][1] == "0.1 (edge)"


@pytest.mark.parametrize(
    ("evolve", "free", "expected"),
    [
        (0.1, 0.0, ["at most 1.01: no", "no gain of its own that is told from none"]),
        (-0.03, -0.1, ["at most 1.01: yes", "its gain is told from none, evolve has 0.30 of it"]),
        (0.005, -0.1, ["at most 1.01: yes", "evolve has -0.05 of it"]),
    ],
)
def test_the_verdict_is_about_the_limit_and_the_share_of_what_can_be_gained(
    evolve: float, free: float, expected: list[str], tmp_path: Path
) -> None:
    variants = read_variants([runs(tmp_path, {"fixed": 0.0, "evolve": evolve, "free": free})])
    lines = verdict(variants, "evolve", "free", 1.01)
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert verdict(variants[:1], "evolve", "free", 1.01) == []


def test_an_interval_around_the_limit_tells_nothing(tmp_path: Path) -> None:
    root = runs(tmp_path, {"fixed": 0.0, "evolve": 0.0})
    evolved = [v for v in read_variants([root]) if v.name == "evolve"]
    for run, shift in zip(evolved[0].runs, (-0.1, 0.15), strict=True):
        losses = torch.full((4,), 3.0 + shift)
        write_losses(run.folder, "repaired", {TASK: losses, f"{TASK}/weights": WEIGHTS})
    assert "at most 1.01: not told" in verdict(read_variants([root]), "evolve", "free", 1.01)[0]


def test_the_files_hold_the_table_and_the_losses_of_rounds(tmp_path: Path) -> None:
    variants = read_variants([runs(tmp_path, {"fixed": 0.0, "evolve": 0.1})])
    files = texts(variants, ["a note"], "seft_control")
    rows = list(csv.DictReader(files["variants.csv"].splitlines()))
    assert [row["variant"] for row in rows] == ["fixed", "evolve"]
    assert "| evolve | 5 | 4.5000 | 4.0000 | 4.2500 |" in files["variants.md"]  # mean of seeds
    assert "a note" in files["variants.md"]


def test_a_variant_without_a_whole_rate_and_a_folder_without_any_are_refused(
    tmp_path: Path,
) -> None:
    result_folders.write(tmp_path / "other", result_folders.result())
    with pytest.raises(ValueError, match="no finished run with a variant under"):
        read_variants([tmp_path])
    cell(tmp_path, 0, "fixed", 1e-2, 0, 3.0, 0.0)
    cell(tmp_path, 1, "evolve", 1e-2, 1, 3.0, 0.0)
    with pytest.raises(ValueError, match=r"no learning rate of variant fixed has .* seeds 0, 1"):
        read_variants([tmp_path])


def test_cells_of_another_configuration_are_not_mixed_with_the_rest(tmp_path: Path) -> None:
    folder = runs(tmp_path, {"fixed": 0.0, "evolve": 0.1})
    path = next(folder.glob("*/result.json"))
    content = json.loads(path.read_text())
    content["config"]["data"]["calibration_samples"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"that are compared differ in data\.calibration_samples"):
        read_variants([folder])

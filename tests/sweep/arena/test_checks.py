"""An arena whose rows could not share a table is refused before its first job."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.members import member_yaml
from sparsemend.files import write_json
from sparsemend.sweep.arena.checks import as_measured, check_arena


def target_of(method: str) -> str:
    return str(member_yaml("method", method)["_target_"])


def job(row: str = "lors", **changes: Any) -> DictConfig:
    """What is read of a job's config; keys with a dot for a group's key."""
    cfg = OmegaConf.create(
        {
            "arena": {
                "row": row,
                "steps": 60,
                "windows_per_step": 2,
                "seconds": 30.0,
                "pilots": [30, 90],
                "length": "method.max_steps",
            },
            "budget": "tokens",
            "sparsity": 0.6,
            "model": {"path": "a"},
            "data": {"calibration_samples": 64},
            "hardware": {"devices": 1},
            "method": {"_target_": target_of(row), "max_steps": 60},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False)
    return cfg


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([job(budget="token")], "budget=token is not one of: tokens, trainable, seconds"),
        ([job(), job(budget="seconds")], "differ in budget: tokens there, seconds here"),
        ([job(), job(sparsity=0.5)], r"differ in sparsity: 0\.6 there, 0\.5 here"),
        ([job(), job(**{"model.path": "b"})], r"differ in model\.path"),
        ([job(), job(**{"arena.steps": 600})], r"differ in arena\.steps"),
        ([job("spp", budget="trainable")], "add one of lora, lora_prune, lors, masked_lora to"),
        ([job(budget="seconds", **{"arena.seconds": 0})], r"arena\.seconds=0 is not above 0"),
        ([job(budget="seconds", **{"arena.pilots": [30]})], r"pilots=\[30\] of row lors"),
        ([job(budget="seconds", **{"arena.pilots": [30, 30]})], "are not two lengths"),
    ],
)
def test_what_cannot_share_a_table_is_refused(jobs: list[DictConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_arena(jobs)


def test_rows_may_differ_in_what_is_their_own_and_other_jobs_in_all() -> None:
    check_arena([job(), job("spp", **{"method.max_steps": 7, "arena.pilots": [1, 3]})])
    check_arena([job("lors", budget="trainable"), job("spp", budget="trainable")])
    check_arena([OmegaConf.create({"sparsity": 0.5}), OmegaConf.create({"sparsity": 0.6})])


@pytest.mark.parametrize(
    ("epochs", "steps", "said"), [(2, 60, ""), (2, 1000, "set arena.epochs=35"), (9, 60, "=2")]
)
def test_a_row_of_epochs_far_from_the_budget_is_pointed_out(
    epochs: int, steps: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """64 windows, an eighth held out: 56 train; 60 steps of two windows are 120."""
    method = {"epochs": epochs, "windows_per_step": 8, "held_out": 0.125}
    method |= {"_target_": target_of("reconstruct")}
    with caplog.at_level(logging.WARNING):
        check_arena([job("reconstruct", method=method, **{"arena.steps": steps})])
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_a_cell_of_seconds_is_known_again_by_the_length_it_was_given(tmp_path: Path) -> None:
    cfg = job(budget="seconds")
    assert as_measured(tmp_path, cfg) is cfg
    write_json(
        tmp_path / "result.json", {"status": "failed", "config": {"method": {"max_steps": 164}}}
    )
    assert as_measured(tmp_path, cfg).method.max_steps == 164
    assert cfg.method.max_steps == 60
    assert as_measured(tmp_path, job()).method.max_steps == 60

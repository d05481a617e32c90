"""The sweep of variants: which jobs follow the first seed's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support import result_folders

from sparsemend.sweep.claims.sweeper import row_of
from sparsemend.sweep.variants.sweeper import RATE, VariantSweeper, best_rates, validation_loss

JOBS = [
    [f"seed={seed}", f"variant={variant}", f"method.learning_rate={rate}"]
    for seed in (0, 1)
    for variant in ("fixed", "evolve")
    for rate in ("1e-3", "1e-2")
]


def test_a_variants_best_rate_is_that_of_its_lowest_loss() -> None:
    best = best_rates(JOBS[:4], [3.0, 2.0, 1.0, 4.0])
    assert best == {("variant=fixed",): "1e-2", ("variant=evolve",): "1e-3"}
    assert best_rates(JOBS[:4], [None, 2.0, None, None]) == {("variant=fixed",): "1e-2"}
    assert row_of(JOBS[0], RATE) == ("variant=fixed",)


def test_further_seeds_run_at_the_best_rates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first four jobs leave losses 3, 2 for fixed and 1, 4 for evolve."""
    sweeper = VariantSweeper(max_batch_size=None)
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    launched: dict[int, list[list[str]]] = {}

    def launch(jobs: list[list[str]], *, first: int) -> list[Any]:
        launched[first] = jobs
        for number, loss in enumerate((3.0, 2.0, 1.0, 4.0)):
            content = result_folders.result()
            content["repair"] = {"validation/loss": loss}
            result_folders.write(tmp_path / str(number), content)
        return []

    monkeypatch.setattr(sweeper, "jobs_of", lambda arguments: JOBS)
    monkeypatch.setattr(sweeper, "launch", launch)
    sweeper.sweep([])
    assert launched == {0: JOBS[:4], 4: [JOBS[5], JOBS[6]]}


def test_a_run_that_did_not_finish_has_no_loss(tmp_path: Path) -> None:
    assert validation_loss(tmp_path) is None
    content = result_folders.result() | {"status": "failed"}
    assert validation_loss(result_folders.write(tmp_path / "0", content)) is None

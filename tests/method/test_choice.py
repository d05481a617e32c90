"""Every method on a model in whose first and last block no linear may lose weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families import random_model
from support.tiers import slow_but_for

from sparsemend import api
from sparsemend.blocks.choice import dense_linears
from sparsemend.config.locations import conf_folder

METHODS = sorted(path.stem for path in (conf_folder() / "method").glob("*.yaml"))
SETTINGS: dict[str, dict[str, Any]] = {
    "seft": {"max_steps": 30},
    "spiel": {"max_steps": 30},
    "losa": {"max_steps": 5, "similarity_samples": 6},
    "reconstruct": {"windows_per_step": 2, "epochs": 1},
    "dsnot": {},
    "none": {},
}


@pytest.mark.parametrize("method", slow_but_for(METHODS, ["reconstruct"]))
def test_blocks_without_a_prunable_linear_are_passed(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    few, more = (torch.randint(3, 96, (n, 16), generator=generator) for n in (8, 24))
    model, dense = random_model("llama"), random_model("llama")
    pruned = api.prune(model, few, include=["layers.1.*"])
    before = {name: linear.weight.clone() for name, linear in dense_linears(model).items()}
    assert len(before) == 2 * 7
    repaired = api.repair(
        model,
        f"method={method}",
        pruned=pruned,
        train=more,
        validation=few,
        calibration=few,
        dense=dense,
        method=SETTINGS.get(method, {"max_steps": 2}),
    )
    assert repaired.report.per_linear.keys() == pruned.report.per_linear.keys()
    # rounds prune by row anew, which may leave out less than a weight of every row
    assert repaired.report.of_prunable == pytest.approx(pruned.report.of_prunable, abs=1 / 32)
    for name, weight in before.items():
        assert torch.equal(model.get_submodule(name).weight, weight), name
    if method == "losa":
        ranks = [block["rank"] for block in repaired.diagnostics["rounds"][-1]["blocks"]]
        mean = repaired.diagnostics["rounds"][-1]["mean_rank"]
        assert ranks == [0, round(mean), 0]

"""What moves supports says so to every tracker and in the result's curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from support import contracts
from support.wandb_file import read_offline

from sparsemend.logger.base import Tracker, Trackers
from sparsemend.logger.csv import CsvTracker
from sparsemend.logger.wandb import WandbTracker
from sparsemend.method.trained import TrainedRepair
from sparsemend.result.summary import curves_of

ROUNDS = ("method.max_steps=9", "method.update_interval=3", "method.accumulation_steps=1")
DELTAS = ("method.budget.match=deltas", "method.budget.deltas=400")
MOVING = {
    "seft": ("seft", *ROUNDS, *DELTAS, "method.initial_drop_rate=0.5"),
    "spiel": ("spiel", *ROUNDS, *DELTAS, "method.initial_drop_rate=0.5"),
    "spiel moments": ("spiel", *ROUNDS, *DELTAS, "method.selection=moments"),
    "masked_full": (
        "masked_full",
        *("method.mask_update=rigl", "method.max_steps=9", "method.update_interval=3"),
    ),
}


def repaired(name: str, knobs: Sequence[str], tracker: Tracker, out: Path) -> dict[str, Any]:
    """The diagnostics of a repair whose fit writes to the loggers of `tracker`."""
    method = contracts.method_of(name, *knobs)
    assert isinstance(method, TrainedRepair)
    trackers = Trackers({"tracker": tracker})
    loggers = trackers.open(out, {})
    bench = dataclasses.replace(contracts.bench_for(out), make_trainer=factory(loggers, out))
    diagnostics = method.repair(contracts.pruned_model(), bench)
    result = {"status": "finished", "metrics": {}, "sparsity": {}, "cost": {}, "repair": {}}
    result |= {"config_hash": "0", "provenance": {"commit": None}, "protocol": {}}
    trackers.finish(loggers, result)
    return diagnostics


def factory(loggers: list[Logger], out: Path) -> Any:
    def make(**settings: Any) -> Trainer:
        return Trainer(
            accelerator="cpu",
            logger=loggers,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
            **settings,
        )

    return make


def curves_of_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """The curves that the records of rounds ask for: sums over linears, by the loggers' step."""
    moved = [[one["step"] - 1, sum(one["moved"])] for one in rounds]
    counts = ("overlap", "reactivated", "pruned", "refilled", "dead", "allocated", "returned")
    sums = {
        f"masks/{name}": [[one["step"] - 1, sum(one[name])] for one in rounds]
        for name in counts
        if name in rounds[0]
    }
    return {"masks/dropped": moved, "masks/grown": moved, **sums}


@pytest.mark.parametrize("case", MOVING)
def test_every_mask_update_is_in_the_curves_of_the_result(case: str, tmp_path: Path) -> None:
    name, *knobs = MOVING[case]
    diagnostics = repaired(name, knobs, CsvTracker(), tmp_path)
    rounds = diagnostics["evolution"]["rounds"]
    assert len(rounds) >= 2
    assert sum(map(sum, (one["moved"] for one in rounds))) > 0
    curves = curves_of(tmp_path)
    expected = curves_of_rounds(rounds)
    assert {key: curves[key] for key in expected} == expected


def test_the_rounds_of_losa_say_what_they_dropped_and_grew_again(tmp_path: Path) -> None:
    diagnostics = repaired(
        "losa", ("method.max_steps=6", "method.rounds=3"), CsvTracker(), tmp_path
    )
    firsts = [0, 2, 4]
    blocks = [one["blocks"] for one in diagnostics["rounds"]]
    dropped = [sum(block["dropped"] for block in each) for each in blocks]
    grown = [sum(block["regrown"] for block in each) for each in blocks]
    assert min(dropped) > 0
    curves = curves_of(tmp_path)
    assert curves["masks/dropped"] == [list(pair) for pair in zip(firsts, dropped, strict=True)]
    assert curves["masks/grown"] == [list(pair) for pair in zip(firsts, grown, strict=True)]


def test_an_offline_wandb_run_has_what_every_round_dropped_and_grew(tmp_path: Path) -> None:
    tracker = WandbTracker(
        project="p",
        name=None,
        entity=None,
        group=None,
        job_type=None,
        mode="offline",
        tags=[],
        artifacts=[],
    )
    name, *knobs = MOVING["seft"]
    diagnostics = repaired(name, knobs, tracker, tmp_path)
    run, expected = read_offline(tmp_path), curves_of_rounds(diagnostics["evolution"]["rounds"])
    assert {key: run.curve(key) for key in expected} == expected

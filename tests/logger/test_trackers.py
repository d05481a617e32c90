import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import OmegaConf
from support import contracts
from support.process_state import process_state
from support.wandb_file import finished, read_offline
from torch.optim import Optimizer

from sparsemend.cost import Stages
from sparsemend.logger.base import Trackers
from sparsemend.logger.csv import CsvTracker
from sparsemend.logger.tensorboard import TensorBoardTracker
from sparsemend.logger.wandb import WandbTracker, as_agent_allows, last_stage, run_name
from sparsemend.method.trained import TrainedRepair
from sparsemend.result.record import Result
from sparsemend.result.summary import BLOCK_COLUMNS, block_rows, curves_of, metric_rows, summary_of
from sparsemend.run.job import open_trackers
from sparsemend.run.run import carry_out, finish
from sparsemend.training.mask_callbacks import UpdateMasks

CONFIG = {
    "name": "grid",
    "pattern": "unstructured",
    "sparsity": 0.6,
    "seed": 3,
    "model": {"name": "tiny"},
    "pruner": {"_target_": "sparsemend.pruner.wanda.Wanda"},
    "sparsity_schedule": {"_target_": "sparsemend.sparsity_schedule.owl.Owl"},
    "method": {"_target_": "sparsemend.method.lors.lors.LoRS"},
}
ORIGIN = {
    "config_hash": "c0ffee",
    "commit": "6b607fe",
    "protocol": {"corpus": "docs", "data_hash": "88d8e221"},
}
RESULT = {
    "status": "finished",
    "config_hash": "c0ffee",
    "provenance": {"commit": "6b607fe", "dirty": False},
    "protocol": {"corpus": "docs", "data_hash": "88d8e221"},
    "metrics": {
        "dense": {"perplexity/test": 15.0},
        "pruned": {"perplexity/test": math.inf},
        "repaired": {"perplexity/test": 17.5},
    },
    "sparsity": {
        "target": 0.6,
        "achieved": 0.59,
        "asked_per_block": {"model.layers.0": 0.5, "model.layers.1": 0.7},
        "per_block": {"model.layers.0": 0.49, "model.layers.1": 0.69},
        "scores": {"model.layers.0": 1.5, "model.layers.1": 0.5},
    },
    "cost": {"load": {"seconds": 1.5, "peak_bytes": 10}},
    "repair": {"steps": 3, "note": "words", "nested": {"a": 1}},
}
SUMMARY = {
    "status": "finished",
    "dense/perplexity/test": 15.0,
    "pruned/perplexity/test": None,
    "repaired/perplexity/test": 17.5,
    "sparsity/target": 0.6,
    "sparsity/achieved": 0.59,
    "sparsity/block/0": 0.49,
    "sparsity/block/1": 0.69,
    "cost/load/seconds": 1.5,
    "cost/load/peak_bytes": 10,
    "repair/steps": 3,
}


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """W&B replaces sys.exit in its process."""
    with process_state():
        yield


def offline(**options: Any) -> WandbTracker:
    settings = {
        "project": "p",
        "entity": None,
        "name": None,
        "group": None,
        "job_type": None,
        "mode": "offline",
        "tags": ["mine"],
        "artifacts": [],
    }
    return WandbTracker(**{**settings, **options})


def test_the_summary_names_what_a_result_holds() -> None:
    assert summary_of(RESULT) == SUMMARY
    assert block_rows(RESULT) == [[0, 0.5, 0.49, 1.5], [1, 0.7, 0.69, 0.5]]
    columns, rows = metric_rows(RESULT)
    assert columns == ["model", "perplexity/test"]
    assert rows == [["dense", 15.0], ["pruned", None], ["repaired", 17.5]]


def test_a_run_that_failed_early_has_a_summary_too() -> None:
    early = {"status": "failed", "metrics": {}, "sparsity": {}, "cost": {}, "repair": {}}
    assert summary_of(early) == {"status": "failed"}
    assert block_rows(early) == []


def test_an_offline_wandb_run_reads_back_as_it_was_told(tmp_path: Path) -> None:
    tracker = offline()
    loggers = tracker.open(tmp_path, CONFIG)
    for step, loss in enumerate((3.0, 2.0)):
        for logger in loggers:
            logger.log_metrics({"train/loss": loss}, step=step)
    tracker.finish(loggers, RESULT)
    run = read_offline(tmp_path)
    run.config.pop("_wandb", None)
    assert run.config == {**CONFIG, **ORIGIN}
    assert run.curve("train/loss") == [[0, 3.0], [1, 2.0]]
    assert {key: run.summary[key] for key in SUMMARY} == SUMMARY
    assert run.table("results") == (list(metric_rows(RESULT)[0]), metric_rows(RESULT)[1])
    assert run.table("sparsity_by_block") == (list(BLOCK_COLUMNS), block_rows(RESULT))
    assert run.exit_code == 0
    assert (run.about.project, run.about.run_group, run.about.job_type) == ("p", "grid", "repair")
    tags = ["tiny", "wanda", "owl", "lors", "unstructured", "mine"]
    assert sorted(run.about.tags) == sorted(tags)
    assert run.about.display_name == "tiny wanda owl lors unstructured 0.6 seed 3"


def test_a_failed_wandb_run_is_closed_as_failed_and_the_next_one_is_its_own(tmp_path: Path) -> None:
    early = {**RESULT, "status": "interrupted", "metrics": {}, "sparsity": {}, "cost": {}}
    for job in ("0", "1"):
        (tmp_path / job).mkdir()
        tracker = offline()
        tracker.abandon(tracker.open(tmp_path / job, CONFIG), early)
    runs = [read_offline(tmp_path / job) for job in ("0", "1")]
    assert [run.exit_code for run in runs] == [1, 1]
    assert [run.summary["status"] for run in runs] == ["interrupted"] * 2
    assert runs[0].about.run_id != runs[1].about.run_id


def test_a_disabled_wandb_run_leaves_nothing_but_the_csv(tmp_path: Path) -> None:
    tracker = offline(mode="disabled", artifacts=["result"])
    loggers = tracker.open(tmp_path, CONFIG)
    loggers[-1].log_metrics({"train/loss": 1.0}, step=0)
    tracker.finish(loggers, RESULT)
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_cell_is_named_for_what_varies_in_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["method.max_steps=2", "method=lors,spp", "seed=0,1", "logger=wandb"]
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": lines}))
    job = ["method.max_steps=2", "method=spp", "seed=1", "logger=wandb", "resume=auto"]
    hydra = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=job))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    assert run_name(tmp_path / "3", CONFIG) == "method=spp seed=1"
    hydra.mode = RunMode.RUN
    assert run_name(tmp_path / "3", CONFIG) == "tiny wanda owl lors unstructured 0.6 seed 3"


def test_all_trackers_of_a_run_get_the_same_curves_under_the_same_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    members = {"wandb": offline(), "tensorboard": TensorBoardTracker(), "none": CsvTracker()}
    tracker = Trackers(members)
    loggers = tracker.open(tmp_path, CONFIG)
    for logger in loggers:
        logger.log_metrics({"train/loss": 3.0, "masks/dropped": 5.0}, step=7)
    tracker.finish(loggers, RESULT)
    run, events = read_offline(tmp_path), read_events(tmp_path)
    (row,) = csv.DictReader((tmp_path / "training" / "metrics.csv").open())
    for name, value in (("train/loss", 3.0), ("masks/dropped", 5.0)):
        assert run.curve(name) == [[7, value]]
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(7, value)]
        assert float(row[name]) == value
    numbers = {key for key, value in SUMMARY.items() if isinstance(value, int | float)}
    assert numbers <= set(events.Tags()["scalars"])
    assert {key for key in SUMMARY if key in run.summary} == set(SUMMARY)


def test_a_tracker_that_cannot_be_closed_does_not_keep_the_others_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(CsvTracker):
        def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
            raise OSError("no space")

    class Spy(CsvTracker):
        def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
            closed.append(result["status"])

    closed: list[str] = []
    tracker = Trackers({"broken": Broken(), "spy": Spy()})
    tracker.finish(tracker.open(tmp_path, {}), RESULT)
    assert closed == ["finished"]
    assert "logger.broken could not be brought to its end" in caplog.text


def test_only_asked_for_artifacts_are_logged(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    tracker = offline(artifacts=["result", "adapter"])  # there is no adapter
    tracker.finish(tracker.open(tmp_path, CONFIG), RESULT)
    _, found = finished(tmp_path)
    logged = [r.artifact.name for r in found if r.WhichOneof("record_type") == "artifact"]
    assert [name for name in logged if name.startswith("result-")] == logged[-1:]
    assert not [name for name in logged if "adapter" in name]


@pytest.mark.parametrize(
    ("method", "pruner", "stage"),
    [
        ("lors.lors.Lors", "wanda.Wanda", "repair"),
        ("none.NoRepair", "wanda.Wanda", "prune"),
        ("none.NoRepair", "existing.Existing", "evaluate"),
    ],
)
def test_the_job_type_is_the_last_stage_that_changes_the_model(
    method: str, pruner: str, stage: str
) -> None:
    members = {"method": method, "pruner": pruner}
    config = {g: {"_target_": f"sparsemend.{g}.{member}"} for g, member in members.items()}
    assert last_stage(config) == stage


def test_under_an_agent_the_config_stands_below_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_agent_allows(CONFIG) == CONFIG
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert as_agent_allows(CONFIG) == {"resolved": CONFIG}


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_holds_curves_and_summary(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorBoardTracker()
    loggers = tracker.open(tmp_path, CONFIG)
    for logger in loggers:
        logger.log_metrics({"train/loss": 3.0}, step=7)
    tracker.finish(loggers, RESULT)
    events = read_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(7, 3.0)]
    assert events.Scalars("repaired/perplexity/test")[0].value == 17.5
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert texts >= {"status", "config_hash", "commit", "protocol/data_hash"}


def bare(tracker: CsvTracker, folder: Path) -> Any:
    """A job of nothing but a tracker and a result."""
    return SimpleNamespace(
        cfg=OmegaConf.create({"export_push": None}),
        out=folder,
        parts=SimpleNamespace(logger=tracker),
        loggers=[],
        result=Result(folder / "result.json", OmegaConf.create({"name": "a"})),
        stages=Stages(torch.device("cpu")),
        reuse=SimpleNamespace(forget_attempts=lambda: None),
    )


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_tracker_is_closed_however_a_run_ends(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spy(CsvTracker):
        def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
            statuses.append(result["status"])

    def failing(job: Any) -> None:
        raise error

    statuses: list[str] = []
    monkeypatch.setattr("sparsemend.run.run.stages", failing)
    with pytest.raises(type(error)):
        carry_out(bare(Spy(), tmp_path))
    assert statuses == ["interrupted" if isinstance(error, KeyboardInterrupt) else "failed"]


def test_a_tracker_that_fails_at_the_end_leaves_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(CsvTracker):
        def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
            raise OSError("no space")

    monkeypatch.setattr("sparsemend.run.run.summary_table", lambda content: "table")
    finish(bare(Broken(), tmp_path))
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "finished"
    assert "no space" in caplog.text


def test_where_a_tracker_cannot_open_the_others_are_closed_and_its_error_is_one_line(
    tmp_path: Path,
) -> None:
    closed: list[str] = []

    class Opens(CsvTracker):
        def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
            closed.append(result["status"])

    class Fails(CsvTracker):
        def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
            json.loads("{}", object_pairs_hook=lambda pairs: pairs.no_such_name)

    result = Result(tmp_path / "result.json", OmegaConf.create(CONFIG))
    trackers = Trackers({"one": Opens(), "two": Fails(), "three": Opens()})
    with pytest.raises(ValueError, match=r"^logger=two: AttributeError: 'list' .*; mend what"):
        open_trackers(trackers, result, tmp_path)
    assert closed == ["failed"]


def test_a_second_part_of_a_run_keeps_the_first_ones_curve(tmp_path: Path) -> None:
    for part, value in enumerate((1.0, 2.0)):
        tracker = Trackers({"none": CsvTracker()})
        (logger,) = tracker.open(tmp_path, {})
        assert isinstance(logger, CSVLogger)
        logger.log_metrics({"train/loss": value, "validation/loss": value}, step=part)
        tracker.finish([logger], {})
    for folder, value in (("training", "1.0"), ("training-2", "2.0")):
        rows = list(csv.DictReader((tmp_path / folder / "metrics.csv").open()))
        assert rows[0]["train/loss"] == value
    assert curves_of(tmp_path) == {"validation/loss": [[0, 1.0], [1, 2.0]]}


class SayTwo(UpdateMasks):
    """Moves nothing, and says so after the second step."""

    def due(self, step: int) -> bool:
        return step == 2

    def update(
        self, module: LightningModule, optimizer: Optimizer, step: int
    ) -> Mapping[str, float]:
        return {"dropped": 5, "grown": 5}


def test_a_mask_update_is_logged_once_beside_the_loss_of_its_step(tmp_path: Path) -> None:
    method = contracts.method_of("masked_lora")
    assert isinstance(method, TrainedRepair)
    bench = contracts.bench_for(tmp_path)
    tracker = Trackers({})
    (logger,) = tracker.open(tmp_path, {})

    def make(**settings: object) -> Trainer:
        callbacks = [*settings.pop("callbacks"), SayTwo()]  # type: ignore[misc]
        return Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **settings,
        )

    object.__setattr__(bench, "make_trainer", make)
    method.repair(contracts.pruned_model(), bench)
    tracker.finish([logger], {})
    rows = list(csv.DictReader((tmp_path / "training" / "metrics.csv").open()))
    said = [(row["step"], row["masks/dropped"], row["masks/grown"]) for row in rows]
    assert [line for line in said if line[1]] == [("1", "5.0", "5.0")]
    losses = [row["step"] for row in rows if row["train/loss"]]
    assert losses == ["0", "1", "2"]

import csv
from pathlib import Path

import contracts
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.optim import Optimizer

from sparsemend.mask_callbacks import UpdateMasks
from sparsemend.method.base import TrainedRepair
from sparsemend.tracking import CsvTracker, WandbTracker, log_mask_update


def test_wandb_offline_records_config_curves_and_summary(tmp_path: Path) -> None:
    tracker = WandbTracker(project="p", entity=None, group="g", mode="offline", tags=["t"])
    logger = tracker.open(tmp_path, {"sparsity": 0.6})
    logger.log_metrics({"train/loss": 1.0}, step=1)
    assert dict(logger.experiment.config) == {"sparsity": 0.6}
    tracker.finish(logger, {"repaired/perplexity/test": 12.5})
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_second_part_of_a_run_keeps_the_first_ones_curve(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logger = CsvTracker().open(tmp_path, {})
        assert isinstance(logger, CSVLogger)
        logger.log_metrics({"train/loss": value}, step=1)
        CsvTracker().finish(logger, {})
    for folder, value in (("training", "1.0"), ("training-2", "2.0")):
        rows = list(csv.DictReader((tmp_path / folder / "metrics.csv").open()))
        assert rows[0]["train/loss"] == value


class SayTwo(UpdateMasks):
    """Moves nothing, and says so after the second step."""

    def due(self, step: int) -> bool:
        return step == 2

    def update(self, module: LightningModule, optimizer: Optimizer, step: int) -> None:
        log_mask_update(module.trainer, {"dropped": 5, "grown": 5})


def test_a_mask_update_is_logged_once_beside_the_loss_of_its_step(tmp_path: Path) -> None:
    method = contracts.method_of("masked_lora")
    assert isinstance(method, TrainedRepair)
    bench = contracts.bench_for(tmp_path)
    logger = CsvTracker().open(tmp_path, {})

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
    CsvTracker().finish(logger, {})
    rows = list(csv.DictReader((tmp_path / "training" / "metrics.csv").open()))
    said = [(row["step"], row["masks/dropped"], row["masks/grown"]) for row in rows]
    assert [line for line in said if line[1]] == [("1", "5.0", "5.0")]
    losses = [row["step"] for row in rows if row["train/loss"]]
    assert losses == ["0", "1", "2"]

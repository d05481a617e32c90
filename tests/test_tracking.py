import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from sparsemend.tracking import CsvTracker, WandbTracker


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

"""Weights & Biases as a mirror of result.json: config, curves, mask updates, tables, summary.

One W&B run per job.  Its name is what varies in the sweep, its group the sweep (name and folder of
the run), its job type the last stage that changes the model, its tags the choices it was composed
of.  Its config is that of the run, with hash, commit and protocol (`data_hash`).  A resumed run
goes on in the W&B run of its folder.  Nothing is uploaded as an artifact unless asked for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, WandbLogger

from sparsemend.config.flags import says
from sparsemend.config.members import member_name
from sparsemend.logger.base import Tracker, origin
from sparsemend.names import ARTIFACTS, SWEEP, WANDB_RUN_ID
from sparsemend.result.summary import BLOCK_COLUMNS, block_rows, metric_rows, summary_of

log = logging.getLogger(__name__)

STEP = "trainer/global_step"  # Lightning's name for its step


@dataclass(kw_only=True)
class WandbTracker(Tracker):
    """A W&B run."""

    project: str
    entity: str | None
    name: str | None
    group: str | None
    job_type: str | None
    mode: str
    tags: list[str]
    artifacts: list[str]
    _out: Path = field(init=False, repr=False)

    def open(self, out: Path, config: Mapping[str, Any]) -> list[Logger]:
        import wandb

        earlier = out / WANDB_RUN_ID
        run_id = earlier.read_text(encoding="utf-8") if earlier.exists() else None
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run_name(out, config),
            group=self.group or sweep_name(out, config),
            job_type=self.job_type or last_stage(config),
            mode=self.mode,  # type: ignore[arg-type]
            tags=[*choices(config), *self.tags],
            dir=out,
            id=run_id,
            resume="allow" if run_id and self.mode == "online" else None,
            config=as_agent_allows(config),
            settings=wandb.Settings(silent=True),
        )
        earlier.write_text(run.id, encoding="utf-8")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        if self.mode == "online":
            log.info("W&B run %s", run.url)
        self._out = out
        return [WandbLogger(experiment=run)]

    def finish(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        self._close(loggers, result, exit_code=0)

    def abandon(self, loggers: list[Logger], result: Mapping[str, Any]) -> None:
        self._close(loggers, result, exit_code=1)

    def _close(self, loggers: list[Logger], result: Mapping[str, Any], *, exit_code: int) -> None:
        for logger in loggers:
            logger.finalize("failed" if exit_code else "success")
        run = wandb_run(loggers)
        try:
            run.config.update(origin(result), allow_val_change=True)
            log_tables(run, result)
            run.summary.update(summary_of(result))
            if not exit_code:
                self._upload(run)
        finally:
            run.finish(exit_code=exit_code)

    def _upload(self, run: Any) -> None:
        import wandb

        for kind in self.artifacts:
            path = self._out / ARTIFACTS[kind]
            if not path.exists():
                log.info("no %s to upload: this run has none", kind)
                continue
            artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
            (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
            run.log_artifact(artifact)


def wandb_run(loggers: list[Logger]) -> Any:
    """The W&B run of the loggers that `open` gave."""
    wandb_loggers = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if len(wandb_loggers) != 1:
        raise TypeError(f"expected one WandbLogger, got {len(wandb_loggers)}")
    return wandb_loggers[0].experiment


def log_tables(run: Any, result: Mapping[str, Any]) -> None:
    """Log the tables `results` (a row per state) and `sparsity_by_block`, unless they are empty."""
    import wandb

    columns, rows = metric_rows(result)
    tables = {
        "results": (columns, rows),
        "sparsity_by_block": ([*BLOCK_COLUMNS], block_rows(result)),
    }
    for name, (head, body) in tables.items():
        if body:
            run.log({name: wandb.Table(columns=[*head], data=body)})


def sweep_name(out: Path, config: Mapping[str, Any]) -> str:
    """The sweep's name and folder for a job of a sweep, the name alone for a single run."""
    name = str(config.get("name", ""))
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return f"{name}/{out.parent.name}" if sweep else name


def run_name(out: Path, config: Mapping[str, Any]) -> str:
    """The overrides that vary in the run's sweep; its choices, sparsity and seed for a single run.

    At most 128 characters, as W&B allows.
    """
    varying = _varying_overrides(out)
    single = [*choices(config), config.get("sparsity", ""), f"seed {config.get('seed')}"]
    return " ".join(varying or [str(part) for part in single])[:128]


def _varying_overrides(out: Path) -> list[str]:
    """The overrides of this job that are not those of its whole sweep; none for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return []
    try:
        sweep = json.loads((out.parent / SWEEP).read_text(encoding="utf-8"))["overrides"]
    except (OSError, ValueError):
        sweep = []
    lines = [line for line in HydraConfig.get().overrides.task if line not in sweep]
    return [line for line in lines if not line.startswith(("resume=", "logger", "hydra."))]


def last_stage(config: Mapping[str, Any]) -> str:
    """repair, prune or evaluate: the last stage that changes the model."""
    if says(config.get("method", {}), "repairs"):
        return "repair"
    return "prune" if says(config.get("pruner", {}), "prunes") else "evaluate"


def choices(config: Mapping[str, Any]) -> list[str]:
    """Model, pruner, schedule, method and pattern, each at most 64 characters as W&B allows."""
    groups = ("pruner", "sparsity_schedule", "method")
    members = [member_name(str(config.get(group, {}).get("_target_", ""))) for group in groups]
    model = str(config.get("model", {}).get("name", ""))
    labels = [model, *members, str(config.get("pattern", ""))]
    return list(dict.fromkeys(tag[:64] for tag in labels if tag))


def as_agent_allows(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, under a W&B agent below a single key: the agent locks the keys that it sets."""
    return {"resolved": dict(config)} if os.environ.get("WANDB_SWEEP_ID") else dict(config)

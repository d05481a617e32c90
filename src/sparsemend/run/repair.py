"""The repair of one run: give the method its workbench, check and record what it left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.blocks.residency import residency_of, streams
from sparsemend.config.values import config_hash, digest, plain
from sparsemend.method.base import Workbench
from sparsemend.result.summary import curves_of
from sparsemend.result.window_losses import repeat_losses
from sparsemend.run.evaluate import evaluate
from sparsemend.run.job import Loaded, RunJob
from sparsemend.run.prune import calibration_of
from sparsemend.run.streamed import dense_loader
from sparsemend.run.table import show_rates
from sparsemend.sparse.linear import check_supports


def repair_stage(job: RunJob, loaded: Loaded, asked: Mapping[str, float]) -> Mapping[str, float]:
    """Repair the loaded model in place; return the sparsity now asked of every linear."""
    method, content = job.parts.method, job.result.content
    with job.stages.measure("repair"):
        if method.repairs:
            residency_of(loaded.model).begin("repair", _key(job))
        diagnostics = method.repair(loaded.model, _workbench(job, loaded, asked))
        if method.repairs or not streams(loaded.model):  # a pass over the files of all blocks
            check_supports(loaded.model)
    job.result.costs(job.stages)
    if method.reallocates:
        asked = diagnostics.pop("asked")
        show_rates(content, loaded.model, asked, job.cfg.sparsity)
    _record(job, diagnostics)
    return asked


def _key(job: RunJob) -> str | None:
    """What decides the repaired blocks; None where none are kept for a later attempt."""
    if job.reuse.attempts is None:
        return None
    return digest([job.keys.environment, job.keys.dense, config_hash(plain(job.cfg))])


def evaluate_repaired(job: RunJob, loaded: Loaded) -> None:
    """Measure the repaired model, or repeat what the pruned one gave where nothing changed it."""
    if job.parts.method.repairs:
        evaluate(job, "repaired", loaded)
        return
    metrics = job.result.content["metrics"]
    metrics["repaired"] = metrics["pruned"]
    repeat_losses(job.out, "pruned", "repaired")


def _workbench(job: RunJob, loaded: Loaded, asked: Mapping[str, float]) -> Workbench:
    cfg, parts, windows = job.cfg, job.parts, loaded.windows
    return Workbench(
        calibration=calibration_of(job, loaded),
        train=windows.train,
        validation=windows.validation,
        pruner=parts.pruner,
        allocation=asked,
        sparsity=cfg.sparsity,
        pattern=job.pattern,
        load_dense=dense_loader(parts.model, cfg.seed, loaded.model),
        make_trainer=parts.hardware.trainer_factory(job.loggers, job.out),
        device=job.device,
        out=job.out,
        seed=cfg.seed,
        micro_batch=parts.hardware.micro_batch,
        activation_checkpointing=parts.hardware.activation_checkpointing,
        rounding=cfg.rounding,
        true_sequential=cfg.true_sequential,
        resume_from=job.checkpoint,
    )


def _record(job: RunJob, diagnostics: dict[str, Any]) -> None:
    content = job.result.content
    content["repair"] = {"foldable": job.parts.method.foldable, **diagnostics}
    content["curves"] = curves_of(job.out)
    trained = diagnostics.get("trained_parameters", 0)
    content["cost"].setdefault("repair", {})["trained_parameters"] = trained

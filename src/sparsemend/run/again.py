"""Measure and export the repaired model of a finished run, with neither pruning nor repair."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedModel

from sparsemend.blocks.choice import choose_
from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.names import with_module_names
from sparsemend.blocks.residency import residency_of, streams
from sparsemend.config.prunable import PrunableNames
from sparsemend.layout.names import name_linears_
from sparsemend.layout.saved import module_supports
from sparsemend.layout.unfold import unfold_
from sparsemend.method.base import RepairMethod
from sparsemend.model import DTYPES
from sparsemend.names import BLOCKS
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.packed import load_unpacked
from sparsemend.pretrained.streamed_blocks import open_streamed
from sparsemend.result.finished import FinishedRun, finished_run
from sparsemend.run.adopt import attach_supports
from sparsemend.run.evaluate import evaluate
from sparsemend.run.export import export_stage
from sparsemend.run.job import RunJob
from sparsemend.run.load import load
from sparsemend.sparse.mask_file import load_masks


def measure_again(job: RunJob) -> None:
    """Carry out the run of a config with from_run."""
    finished = finished_run(job.cfg.from_run)
    loaded = load(job)
    evaluate(job, "dense", loaded)
    with job.stages.measure("load"):
        folder = job.out / BLOCKS if streams(loaded.model) else None
        del loaded.model  # first: two may not fit
        loaded.model = load_repaired(finished, job.parts.method, job.cfg, folder)
    evaluate(job, "repaired", loaded)
    finished.carry_over(job.result.content)
    job.result.content["sparsity"] = finished.result.sparsity.to_json()
    asked, model = finished.asked_sparsity(), loaded.model
    export_stage(job, loaded, with_module_names(model, asked, prunable_linears(model)))


def load_repaired(
    finished: FinishedRun, method: RepairMethod, cfg: DictConfig, blocks: Path | None = None
) -> PreTrainedModel:
    """Load the repaired model on the CPU, in its export dtype, with the very bits measured then.

    Where export_dtype rounded the weights, these are the rounded ones.  Raises ValueError where
    weights and masks do not belong together.  blocks: where the model's blocks are to lie with
    their supports; None: in memory.
    """
    exported = Checkpoint(
        path=str(finished.model),
        revision=None,
        trust_remote_code=bool(cfg.model.get("trust_remote_code")),
    )
    dtype, attention = DTYPES[finished.dtype], cfg.model.get("attention")
    if finished.packed:
        if blocks is not None:
            raise ValueError(
                f"from_run={finished.folder}: packed weights are read whole; set "
                "hardware.stream=false"
            )
        model = load_unpacked(
            finished.model,
            dtype=dtype,
            attention=attention,
            trust_remote_code=exported.trust_remote_code,
        )
    elif blocks is None:
        model = exported.load(dtype=dtype, attention=attention)
        unfold_(model)
    else:
        model = open_streamed(exported, dtype=dtype, attention=attention, folder=blocks)
        residency_of(model).begin("repaired")
    name_linears_(model)
    choose_(model, PrunableNames.of(cfg))
    attach_supports(model, module_supports(model, load_masks(finished.supports)))
    if finished.adapter is not None:
        method.load_adapter(model, finished.adapter)
    return model.eval()

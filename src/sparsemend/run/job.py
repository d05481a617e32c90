"""One run's objects, and what its stages hand on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.room import return_freed
from sparsemend.config.prunable import PrunableNames
from sparsemend.cost import Stages
from sparsemend.errors import blame
from sparsemend.logger.base import Trackers
from sparsemend.result.record import Result
from sparsemend.result.resume import last_checkpoint
from sparsemend.run.choice import ChosenLinears
from sparsemend.run.debug import FirstBlocks, cut_short
from sparsemend.run.keys import Keys
from sparsemend.run.model_type import with_bos
from sparsemend.run.parts import Parts
from sparsemend.run.reuse import Reuse, open_reuse
from sparsemend.run.windows import Windows
from sparsemend.sparse.pattern import Pattern


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """What every stage of one run reads.

    checkpoint: of the fit that an earlier attempt began, None without one.
    """

    cfg: DictConfig
    parts: Parts
    result: Result
    out: Path
    device: torch.device
    stages: Stages
    pattern: Pattern
    reuse: Reuse
    keys: Keys
    loggers: list[Logger]
    checkpoint: Path | None


@dataclass
class Loaded:
    """The inputs of a run.  The model is pruned and repaired in place."""

    tokenizer: PreTrainedTokenizerBase | None
    windows: Windows
    model: PreTrainedModel


def build_parts(cfg: DictConfig) -> Parts:
    """One object per group of the config; raises ValueError where they cannot work together."""
    cfg = with_bos(cfg)
    built = {group: build(cfg[group]) for group in Parts.__dataclass_fields__}
    built["logger"] = Trackers(built["logger"])
    built["model"] = ChosenLinears(built["model"], PrunableNames.of(cfg))
    if cfg.get("debug") is not None:
        built["model"] = FirstBlocks(built["model"], cfg.debug.blocks)
    parts = Parts(**built)
    parts.check()
    return parts


def build(section: DictConfig) -> Any:
    """The object of a config section, or the objects of its sections by name.

    Raises ValueError where its class takes other keys, or cannot be imported.
    """
    key = section._get_full_key(None)
    with blame(key, f"compare the keys of {key} with the constructor that its _target_ names"):
        # A user's own method or pruner may live in any module: no list of targets is imposed.
        return instantiate(
            section, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
        )


def prepare(cfg: DictConfig, result: Result, out: Path) -> RunJob:
    """Build the objects, take the device, open the trackers."""
    cfg = cut_short(cfg)
    parts = build_parts(cfg)
    device = parts.hardware.prepare()
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    result.content["provenance"] |= {"device": machine, "threads": torch.get_num_threads()}
    return RunJob(
        cfg=cfg,
        parts=parts,
        result=result,
        out=out,
        device=device,
        stages=Stages(device, settle=return_freed),
        pattern=Pattern.parse(cfg.pattern),
        reuse=open_reuse(cfg, out),
        keys=Keys(cfg, device),
        loggers=open_trackers(parts.logger, result, out),
        checkpoint=last_checkpoint(out),
    )


def open_trackers(trackers: Trackers, result: Result, out: Path) -> list[Logger]:
    """Open every tracker, or none: where one fails, the others are closed as of a failed run."""
    try:
        return trackers.open(out, result.content["config"])
    except BaseException as error:
        result.fail(error)
        trackers.abandon([], result.content)
        raise

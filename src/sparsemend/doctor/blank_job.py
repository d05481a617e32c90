"""A run's job on a model of random weights, or of none, and on windows of random tokens."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators.cpu import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.prunable import PrunableNames
from sparsemend.cost import Stages
from sparsemend.doctor.peaks import Extent
from sparsemend.doctor.skeleton import BlankWindows, Skeleton
from sparsemend.doctor.tensors import pretended_device
from sparsemend.hardware import Hardware
from sparsemend.model import ModelSource
from sparsemend.names import RESULT, STAGES
from sparsemend.result.record import Result
from sparsemend.run.cache import Cache
from sparsemend.run.choice import ChosenLinears
from sparsemend.run.job import RunJob, build, build_parts
from sparsemend.run.keys import Keys
from sparsemend.run.memory import Memory
from sparsemend.run.parts import Parts
from sparsemend.run.reuse import Reuse
from sparsemend.sparse.pattern import Pattern
from sparsemend.training.checkpoint_file import CheckpointFile

NOT_RUN = ("zero_shot", "speed")  # evaluations that generate or ask a harness


class AnyDevice(CPUAccelerator):
    """Lightning's accelerator for a device that needs no setting up."""

    def setup_device(self, device: torch.device) -> None:
        return


class DryHardware(Hardware):
    """The run's hardware, of which the device is pretended."""

    device: torch.device

    def prepare(self) -> torch.device:
        return self.device

    def trainer(self, out: Path, **settings: Any) -> Trainer:
        return Trainer(
            strategy=SingleDeviceStrategy(device=self.device, accelerator=AnyDevice()),
            plugins=[CheckpointFile()],
            default_root_dir=out,
            enable_model_summary=False,
            **settings,
        )


def skeleton_of(cfg: DictConfig) -> Skeleton:
    """The model of `cfg` by its shapes."""
    return Skeleton(build(cfg.model))


def blank_job(
    cfg: DictConfig,
    out: Path,
    model: ModelSource,
    extent: Extent,
    stages: Stages,
    *,
    pretended: bool = True,
) -> RunJob:
    """The job of `cfg` on `model`, with as many calibration windows as `extent` says.

    pretended: a GPU is a device without memory, else the one at hand.
    """
    parts = build_parts(cfg)
    hardware, host = parts.hardware, torch.device("cpu")
    if pretended:
        device, keyed = pretended_device() if hardware.on_gpu else host, host
        hardware = _dry_hardware(hardware, device)
    else:
        device = keyed = hardware.prepare()
    parts = replace(
        parts,
        model=ChosenLinears(model, PrunableNames.of(cfg)),
        data=_blank(cfg, parts, extent.windows),
        hardware=hardware,
        evaluation={n: e for n, e in parts.evaluation.items() if n not in NOT_RUN},
    )
    result = Result(out / RESULT, cfg)
    result.content["provenance"] |= {"device": "cpu", "threads": torch.get_num_threads()}
    kept = cfg.cache.dir is not None
    return RunJob(
        cfg=cfg,
        parts=parts,
        result=result,
        out=out,
        device=device,
        stages=stages,
        pattern=Pattern.parse(cfg.pattern),
        reuse=Reuse(
            memory=Memory(False),
            shared=None,
            attempts=Cache(out / STAGES, owner=out) if kept else None,
            models=bool(cfg.cache.models),
        ),
        keys=Keys(cfg, keyed),
        loggers=[],
        checkpoint=None,
    )


def _dry_hardware(hardware: Hardware, device: torch.device) -> Hardware:
    dry = DryHardware(**{each.name: getattr(hardware, each.name) for each in fields(Hardware)})
    dry.device = device
    return dry


def _blank(cfg: DictConfig, parts: Parts, windows: int) -> BlankWindows:
    data = parts.data
    steps = cfg.method.get("windows_per_step", 1) * 6
    return BlankWindows(
        name=data.name,
        seqlen=data.seqlen,
        calibration_samples=windows,
        vocabulary=32,  # any model knows these
        trained=max(steps, cfg.method.get("init_samples", 1)),
        validated=max(2, cfg.hardware.evaluation_batch),
        tested=cfg.hardware.evaluation_batch,
        frames=data.framing(),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Print and log nothing inside but errors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextmanager
def around_fits(inside: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Enter a context of its own for every fit of a method that trains."""
    from sparsemend.training.module import RepairModule

    fit = RepairModule.fit

    def fit_inside(module: Any, *settings: Any, **named: Any) -> Any:
        with inside():
            return fit(module, *settings, **named)

    with patch.object(RepairModule, "fit", fit_inside):
        yield


@contextmanager
def hydra_of_a_job() -> Iterator[None]:
    """What an export asks Hydra about the command line that made it."""
    instance = HydraConfig.instance()
    before = instance.cfg
    content: dict[str, Any] = {"overrides": {"task": []}, "runtime": {"config_sources": []}}
    instance.cfg = OmegaConf.create({"hydra": content})  # type: ignore[assignment]
    try:
        yield
    finally:
        instance.cfg = before

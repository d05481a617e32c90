"""A run without weights: the stages' own code on tensors without values, with few blocks."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators.cpu import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparsemend import prune as prune_module
from sparsemend.cost import Stages
from sparsemend.doctor.ledger import FITTING, FOLD, Ledger, Rises
from sparsemend.doctor.peaks import Extent, Measured
from sparsemend.doctor.skeleton import BlankWindows, FewBlocks, Skeleton
from sparsemend.doctor.tensors import DryTensors, pretended_device
from sparsemend.doctor.writes import Written
from sparsemend.hardware import Hardware
from sparsemend.names import STAGES
from sparsemend.pruner.base import Pruner
from sparsemend.result.record import Result
from sparsemend.run.cache import Cache
from sparsemend.run.job import RunJob, build_parts
from sparsemend.run.keys import Keys
from sparsemend.run.memory import Memory
from sparsemend.run.parts import Parts
from sparsemend.run.quiet import quieten
from sparsemend.run.reuse import Reuse
from sparsemend.run.run import stages
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

Pruned = dict[tuple[Any, ...], Rises]  # shape and kind of a linear -> what its pruning rises by

# what of a run repeats itself and is cut: where a member has such a key, it takes at most this
SHORTER = {
    "method": {
        "max_steps": 4,
        "validate_every": 4,
        "checkpoint_every": 4,
        "validation_windows": 2,
        "update_interval": 3,
        "accumulation_steps": 1,
        "rounds": 2,
        "epochs": 1,
        "init_samples": 16,
        "max_cycles": 2,
        "similarity_samples": 4,
    },
    "sparsity_schedule": {"similarity_samples": 4},
}


class DryStages(Stages):
    """Names the stages of a ledger."""

    def __init__(self, device: torch.device, ledger: Ledger) -> None:
        super().__init__(device)
        self.ledger = ledger

    @contextmanager
    def measure(self, name: str, part: str | None = None) -> Iterator[None]:
        with self.ledger.during(name if part is None else f"{name}: {part}"):
            yield


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
            default_root_dir=out,
            enable_model_summary=False,
            **settings,
        )


def dry_run(cfg: DictConfig, extent: Extent, pruned: Pruned | None = None) -> Measured:
    """Run the stages of `cfg` with the first decoder blocks and calibration windows.

    pruned: what dry runs of the same settings share, filled here.
    """
    quieten()
    cfg = shortened(cfg)
    ledger = Ledger()
    with TemporaryDirectory() as folder, _quiet(), _hydra_of_a_job():
        out = Path(folder)
        written = Written(out)
        mode = DryTensors(ledger, 1 - float(cfg.sparsity))
        job = _job(cfg, out, mode, extent)
        with (
            written.recording(),
            mode.running(),
            _fit_as_a_stage(ledger),
            _each_shape_once(ledger, {} if pruned is None else pruned),
            patch.object(Allocation, "__post_init__", _any_rates),
        ):
            stages(job)
    return Measured(extent, ledger.peaks, written.sizes)


def shortened(cfg: DictConfig) -> DictConfig:
    """`cfg` with less of what repeats itself at the same memory."""
    shorter = cfg.copy()
    if "update_interval" not in shorter.method and "max_steps" in shorter.method:
        shorter.method.max_steps = min(2, shorter.method.max_steps)
    if "oversparsity" in shorter.method:
        shorter.method.oversparsity = "ignore"  # what the blocks have reached is not known
    for group, keys in SHORTER.items():
        for key, most in keys.items():
            value = shorter[group].get(key)
            if isinstance(value, int) and value > most:
                shorter[group][key] = most
    return shorter


def _job(cfg: DictConfig, out: Path, mode: DryTensors, extent: Extent) -> RunJob:
    parts = build_parts(cfg)
    source = parts.model.source  # type: ignore[attr-defined]  # of ChosenLinears
    parts.model.source = FewBlocks(Skeleton(source), extent.blocks, mode)  # type: ignore[attr-defined]
    result = Result(out / "result.json", cfg)
    result.content["provenance"] |= {"device": "cpu", "threads": torch.get_num_threads()}
    device = torch.device("cpu") if parts.hardware.accelerator == "cpu" else pretended_device()
    parts = replace(
        parts,
        data=_blank(cfg, parts, extent.windows),
        hardware=_dry_hardware(parts.hardware, device),
    )
    return RunJob(
        cfg=cfg,
        parts=parts,
        result=result,
        out=out,
        device=device,
        stages=DryStages(torch.device("cpu"), mode.ledger),
        pattern=Pattern.parse(cfg.pattern),
        reuse=Reuse(
            memory=Memory(False),
            shared=None,
            attempts=Cache(out / STAGES, owner=out) if cfg.cache.dir is not None else None,
            models=bool(cfg.cache.models),
        ),
        keys=Keys(cfg, torch.device("cpu")),
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
        vocabulary=100,
        trained=max(steps, cfg.method.get("init_samples", 1)),
        validated=max(2, cfg.hardware.evaluation_batch),
        tested=cfg.hardware.evaluation_batch,
        frames=data.framing(),
    )


@contextmanager
def _fit_as_a_stage(ledger: Ledger) -> Iterator[None]:
    """Tell apart what a method does before, in and after its fit."""
    from sparsemend.training.module import RepairModule

    fit = RepairModule.fit

    def fitting(module: Any, *settings: Any, **named: Any) -> Any:
        with ledger.during(FITTING):
            result = fit(module, *settings, **named)
        ledger.stage = FOLD
        return result

    with patch.object(RepairModule, "fit", fitting):
        yield


@contextmanager
def _each_shape_once(ledger: Ledger, pruned: Pruned) -> Iterator[None]:
    """Prune one linear of each shape; the others rise as far, and get a support.

    SparseGPT goes through the columns of a linear one by one.
    """
    prune_linear = prune_module.prune_linear

    def pruning(
        linear: nn.Linear, pruner: Pruner, statistic: Any, sparsity: float, pattern: Pattern
    ) -> SparseLinear:
        weight = linear.weight
        key = (*weight.shape, weight.dtype, weight.device, sparsity > 0)
        if isinstance(linear, SparseLinear):
            return prune_linear(linear, pruner, statistic, sparsity, pattern)
        if key not in pruned:
            with ledger.recording() as pruned[key]:
                return prune_linear(linear, pruner, statistic, sparsity, pattern)
        ledger.repeat(pruned[key])
        return SparseLinear(weight, linear.bias, torch.empty_like(weight, dtype=torch.bool))

    with patch.object(prune_module, "prune_linear", pruning):
        yield


def _any_rates(allocation: Allocation) -> None:
    """Give every linear the target, where scores that nobody knows lead elsewhere."""
    object.__setattr__(allocation, "rates", dict.fromkeys(allocation.rates, allocation.target))


@contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextmanager
def _hydra_of_a_job() -> Iterator[None]:
    """What an export asks Hydra about the command line that made it."""
    instance = HydraConfig.instance()
    before = instance.cfg
    content = {"overrides": {"task": []}, "runtime": {"config_sources": []}}
    instance.cfg = OmegaConf.create({"hydra": content})
    try:
        yield
    finally:
        instance.cfg = before

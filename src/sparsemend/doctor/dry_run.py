"""A run without weights: the stages' own code on tensors without values, with few blocks."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
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
from sparsemend.blocks import states as states_module
from sparsemend.config.flags import says
from sparsemend.config.prunable import PrunableNames
from sparsemend.cost import Cost, Stages
from sparsemend.doctor.ledger import Ledger, Rises
from sparsemend.doctor.peaks import FITTING, FOLD, Extent, Measured
from sparsemend.doctor.skeleton import BlankWindows, FewBlocks, Skeleton
from sparsemend.doctor.tensors import DryTensors, pretended_device
from sparsemend.doctor.writes import Written
from sparsemend.hardware import Hardware
from sparsemend.model import ModelSource
from sparsemend.names import RESULT, STAGES
from sparsemend.pruner.base import Pruner
from sparsemend.result.record import Result
from sparsemend.run.cache import Cache
from sparsemend.run.choice import ChosenLinears
from sparsemend.run.job import RunJob, build, build_parts
from sparsemend.run.keys import Keys
from sparsemend.run.memory import Memory
from sparsemend.run.parts import Parts
from sparsemend.run.quiet import quieten
from sparsemend.run.reuse import Reuse
from sparsemend.run.run import stages
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

PrunedShapes = dict[
    tuple[Any, ...], Rises
]  # shape and kind of a linear -> what its pruning rises by

# what of a run repeats itself and is cut: where a member has such a key, it takes at most this
NOT_RUN = ("zero_shot", "speed")  # evaluations that generate or ask a harness
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
        "max_cycles": 2,
        "similarity_samples": 4,
    },
    "sparsity_schedule": {"similarity_samples": 4},
}


class _Enough(Exception):
    """Ends a dry run after the stage that was of interest."""


class DryStages(Stages):
    """Names the stages of a ledger; raises _Enough at the end of the last one of interest."""

    def __init__(self, ledger: Ledger, until: str | None) -> None:
        super().__init__(torch.device("cpu"))
        self.ledger, self.until = ledger, until

    @contextmanager
    def measure(self, name: str, part: str | None = None) -> Iterator[None]:
        stage = name if part is None else f"{name}: {part}"
        with self.ledger.during(stage):
            yield
        self.costs[name] = Cost()  # which an export's card has a line for
        if stage == self.until:
            raise _Enough


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


def dry_run(
    cfg: DictConfig, extent: Extent, pruned: PrunedShapes | None = None, *, until: str | None = None
) -> Measured:
    """Run the stages of `cfg` with the first decoder blocks and calibration windows.

    pruned: what dry runs of the same settings share, filled here.  until: the last stage.
    """
    quieten()
    cfg = shorten(cfg)
    ledger = Ledger()
    with TemporaryDirectory() as folder, _quiet(), _hydra_of_a_job():
        out = Path(folder)
        written = Written(out)
        mode = DryTensors(ledger, 1 - float(cfg.sparsity))
        model = FewBlocks(_source(cfg), extent.blocks, ledger)
        job = _job(cfg, out, model, extent, DryStages(ledger, until))
        with (
            written.recording(),
            mode.running(),
            _fit_as_a_stage(ledger),
            _each_shape_once(ledger, {} if pruned is None else pruned),
            patch.object(Allocation, "__post_init__", _any_rates),
            patch.object(states_module, "available_bytes", lambda: None),
            suppress(_Enough),
        ):
            stages(job)
    return Measured(extent, model.depth, ledger.peaks, written.by_kind())


def shorten(cfg: DictConfig) -> DictConfig:
    """`cfg` with less of what repeats itself at the same memory."""
    shorter = cfg.copy()
    if "update_interval" not in shorter.method and "max_steps" in shorter.method:
        shorter.method.max_steps = min(2, shorter.method.max_steps)
    at_once = shorter.hardware.micro_batch
    if says(cfg.method, "trains"):
        ranks = int(cfg.hardware.get("devices", 1))
        share = max(1, shorter.method.windows_per_step // ranks)
        # gradients are added up once
        shorter.method.windows_per_step = share if at_once is None else min(2 * at_once, share)
    if "init_samples" in shorter.method:
        few = shorter.method.windows_per_step
        shorter.method.init_samples = min(few, shorter.method.init_samples)
    if "oversparsity" in shorter.method:
        shorter.method.oversparsity = "ignore"  # what the blocks have reached is not known
    for group, keys in SHORTER.items():
        for key, most in keys.items():
            value = shorter[group].get(key)
            if isinstance(value, int) and value > most:
                shorter[group][key] = most
    return shorter


def _source(cfg: DictConfig) -> Skeleton:
    return Skeleton(build(cfg.model))


def _job(
    cfg: DictConfig, out: Path, model: ModelSource, extent: Extent, dry_stages: DryStages
) -> RunJob:
    parts = build_parts(cfg)
    device = pretended_device() if parts.hardware.on_gpu else torch.device("cpu")
    parts = replace(
        parts,
        model=ChosenLinears(model, PrunableNames.of(cfg)),
        data=_blank(cfg, parts, extent.windows),
        hardware=_dry_hardware(parts.hardware, device),
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
        stages=dry_stages,
        pattern=Pattern.parse(cfg.pattern),
        reuse=Reuse(
            memory=Memory(False),
            shared=None,
            attempts=Cache(out / STAGES, owner=out) if kept else None,
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
        vocabulary=32,  # any model knows these
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
def _each_shape_once(ledger: Ledger, pruned: PrunedShapes) -> Iterator[None]:
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
    content: dict[str, Any] = {"overrides": {"task": []}, "runtime": {"config_sources": []}}
    instance.cfg = OmegaConf.create({"hydra": content})  # type: ignore[assignment]
    try:
        yield
    finally:
        instance.cfg = before

"""A run without weights: the stages' own code on tensors without values, with few blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import DictConfig
from torch import nn

from sparsemend import prune as prune_module
from sparsemend.blocks import device_memory
from sparsemend.config.flags import says
from sparsemend.cost import Cost, Stages
from sparsemend.doctor.blank_job import (
    around_fits,
    blank_job,
    hydra_of_a_job,
    quiet,
    skeleton_of,
)
from sparsemend.doctor.ledger import Ledger, Rises
from sparsemend.doctor.peaks import FITTING, FOLD, Extent, Measured
from sparsemend.doctor.skeleton import FewBlocks
from sparsemend.doctor.tensors import DryTensors
from sparsemend.doctor.writes import Written
from sparsemend.pruner.base import Pruner
from sparsemend.run.quiet import quieten
from sparsemend.run.run import stages
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation

# shape and kind of a linear -> what its pruning rises by
PrunedShapes = dict[tuple[Any, ...], Rises]

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


def dry_run(
    cfg: DictConfig, extent: Extent, pruned: PrunedShapes | None = None, *, until: str | None = None
) -> Measured:
    """Run the stages of `cfg` with the first decoder blocks and calibration windows.

    pruned: what dry runs of the same settings share, filled here.  until: the last stage.
    """
    quieten()
    cfg = shorten(cfg)
    ledger = Ledger()
    with TemporaryDirectory() as folder, quiet(), hydra_of_a_job():
        out = Path(folder)
        written = Written(out, ledger)
        mode = DryTensors(ledger, 1 - float(cfg.sparsity))
        model = FewBlocks(skeleton_of(cfg), extent.blocks, ledger)
        job = blank_job(cfg, out, model, extent, DryStages(ledger, until))
        with (
            written.recording(),
            mode.running(),
            around_fits(partial(_fit_as_a_stage, ledger)),
            _each_shape_once(ledger, {} if pruned is None else pruned),
            patch.object(Allocation, "__post_init__", _any_rates),
            patch.object(device_memory, "available_bytes", lambda: None),
            suppress(_Enough),
        ):
            stages(job)
    return Measured(extent, model.depth, ledger.peaks, written.by_kind())


def shorten(cfg: DictConfig) -> DictConfig:
    """`cfg` with less of what repeats itself at the same memory."""
    shorter = cfg.copy()
    # packing asks for values; a dense export is the larger one on disk
    shorter.export_form, shorter.export_values = "dense", None
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


@contextmanager
def _fit_as_a_stage(ledger: Ledger) -> Iterator[None]:
    """Tell apart what a method does before, in and after its fit."""
    with ledger.during(FITTING):
        yield
    ledger.begin(FOLD)


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

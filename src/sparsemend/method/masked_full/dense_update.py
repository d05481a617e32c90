"""Drop-and-grow for supports whose kept weights all train: SET, RigL, sparse momentum.

Every `interval` steps the smallest |w| leave each linear's support and as many positions enter:

    set             at random (Mocanu et al. 2018, arXiv 1707.04780)
    rigl            where the last |gradient| is largest (Evci et al. 2020, arXiv 1911.11134)
    rigl_momentum   where its running mean is (Dettmers and Zettlemoyer 2019, arXiv 1907.04840)

Weights that enter start at 0, and the optimizer state of all that moved is reset.  rigl holds one
dense gradient from backward to update, rigl_momentum one per weight throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from sparsemend.config.seeds import mix_seed
from sparsemend.sparse.drop_and_grow import forget_, moved_support
from sparsemend.sparse.drop_fraction import drop_fraction
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.packing import unpack
from sparsemend.training.mask_callbacks import UpdateMasks
from sparsemend.training.module import RepairModule
from sparsemend.training.optimizers import state_of

RULES = ("none", "set", "rigl", "rigl_momentum")


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """One of RULES but `none`, applied every `interval` steps up to step `last`.

    initial, decay: the share of the support that moves.
    """

    rule: str
    interval: int
    last: int
    initial: float
    decay: str
    momentum: float


class DenseUpdate(UpdateMasks):
    """Moves the support of every linear whose weight trains.

    starting: the packed supports before training, by name, for the overlap in `records`.
    """

    def __init__(self, rule: UpdateRule, starting: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.rule, self.starting = rule, starting
        self.records: list[dict[str, Any]] = []
        self.growth: dict[str, Tensor] = {}  # (O, I) by name: scores of the next growth
        self._final = False

    def due(self, step: int) -> bool:
        return step % self.rule.interval == 0 and step <= self.rule.last

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._final = (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step's gradients, averaged over processes, before they are masked."""
        averages = self.rule.rule == "rigl_momentum"
        if not self._final or self.rule.rule == "set":
            return
        if not averages and not self.due(trainer.global_step + 1):
            return
        for name, linear in trained_linears(pl_module):
            gradient = linear.weight.grad
            if gradient is None:  # an expert that no token of the step chose
                continue
            if averages:
                # a resumed fit restores it on the host
                mean = self.growth.get(name, torch.zeros_like(gradient)).to(gradient.device)
                self.growth[name] = mean.lerp_(gradient, 1 - self.rule.momentum)
            else:
                self.growth[name] = gradient.clone()

    def update(
        self, module: LightningModule, optimizer: Optimizer, step: int
    ) -> Mapping[str, float]:
        rule = self.rule
        fraction = drop_fraction(rule.initial, rule.decay, step / rule.last)
        assert isinstance(module, RepairModule)
        generator = torch.Generator().manual_seed(mix_seed(module.seed, step))
        moved, overlap = [], []
        for name, linear in trained_linears(module):
            keep = linear.keep.contiguous()
            if rule.rule == "set":
                score = torch.rand(keep.shape, generator=generator).to(keep.device)
            else:
                score = self.growth.get(name, torch.zeros_like(linear.weight)).to(keep.device).abs()
            still = rule.rule != "set" and name not in self.growth
            count = 0 if still else int(fraction * int(keep.count_nonzero()))
            weight = linear.weight.detach()
            new, changed = moved_support(keep, weight.abs(), score, count)
            linear.set_effective_(weight, new)
            forget_(state_of(optimizer, linear.weight), weight.shape, changed)
            moved.append(int(changed.count_nonzero()) // 2)
            start = self.starting[name.removeprefix("model.")].to(new.device)
            overlap.append(int((new & unpack(start, linear.in_features)).count_nonzero()))
        if rule.rule == "rigl":
            self.growth.clear()
        self.records.append(
            {"step": step, "fraction": fraction, "moved": moved, "overlap": overlap}
        )
        exchanged = sum(moved)
        return {
            "dropped": exchanged,
            "grown": exchanged,
            "fraction": fraction,
            "overlap": sum(overlap),
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"records": self.records, "growth": self.growth}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.records, self.growth = list(state_dict["records"]), dict(state_dict["growth"])


def trained_linears(module: LightningModule) -> list[tuple[str, SparseLinear]]:
    """(full name, module) of every SparseLinear whose weight trains."""
    return [(n, linear) for n, linear in sparse_linears(module) if linear.weight.requires_grad]

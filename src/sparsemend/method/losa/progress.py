"""The state that LoSA's rounds hand on to each other, and to the attempt that resumes a killed one.

It is one file, written whole after a round's pruning and again after its training: supports,
factors, base weights (only where they differ from keep * dense), rates, optimizer moments, and the
diagnostics so far.  Inside a round the fit's own last.ckpt serves, marked with the round's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sparsemend.blocks.find import prunable_linears
from sparsemend.errors import blame_left
from sparsemend.files import replacing
from sparsemend.method.losa.linear import LosaLinear, resize
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.packing import unpack
from sparsemend.training.mask_callbacks import log_mask_update

AdamStates = dict[str, dict[str, Tensor]]  # parameter name -> AdamW's state of it


@dataclass
class Progress:
    """Round `round` (0: none yet) is pruned, and `trained` or not."""

    round: int = 0
    trained: bool = True
    rates: list[float] | None = None  # of the blocks, as the last pruning asked for them
    delta: float | None = None  # how far from the target it allowed them to be
    moments: AdamStates = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path, model: nn.Module, dense: nn.Module) -> None:
        """Write this and what the rounds changed in `model`, atomically."""
        with replacing(path) as partial:
            torch.save({**vars(self), "linears": linear_states(model, dense)}, partial)

    @staticmethod
    def load(path: Path, model: nn.Module, dense: nn.Module) -> Progress:
        """The saved progress, put back into `model`; a fresh one where there is no file."""
        if not path.exists():
            return Progress()
        with blame_left(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
        restore_linears_(model, dense, content.pop("linears"))
        return Progress(**content)


def losa_linears(model: nn.Module) -> dict[str, LosaLinear]:
    """Every LosaLinear by its full name."""
    return {name: m for name, m in sparse_linears(model) if isinstance(m, LosaLinear)}


@torch.no_grad()
def restore_dense_(model: nn.Module, dense: nn.Module) -> None:
    """Put the dense weights back, on the support of those that are not zero."""
    originals = prunable_linears(dense)
    for name, linear in sparse_linears(model):
        weight = originals[name].weight
        linear.set_effective_(weight, (weight != 0).to(linear.weight.device))


@torch.no_grad()
def linear_states(model: nn.Module, dense: nn.Module) -> dict[str, dict[str, Any]]:
    """Every linear's support, factors, rank and, where it is not keep * dense, base, by name."""
    originals, states = prunable_linears(dense), {}
    for name, linear in losa_linears(model).items():
        weight, original = linear.weight.detach().cpu(), originals[name].weight.cpu()
        kept = original.to(weight.dtype).masked_fill(~linear.keep.cpu(), 0)
        states[name] = {
            "packed_keep": linear.packed_keep.cpu(),
            "weight": None if torch.equal(weight, kept) else weight,
            "a": linear.lora_a.detach().cpu(),
            "b": linear.lora_b.detach().cpu(),
            "rank": linear.rank,
        }
    return states


def restore_linears_(
    model: nn.Module, dense: nn.Module, states: Mapping[str, dict[str, Any]]
) -> None:
    """Put the states that `linear_states` returned back into `model`."""
    originals = prunable_linears(dense)
    for name, linear in losa_linears(model).items():
        state = states[name]
        weight = originals[name].weight if state["weight"] is None else state["weight"]
        keep = unpack(state["packed_keep"], linear.in_features)
        linear.restore_(weight, keep, state["a"], state["b"], state["rank"])


class RoundMark(Callback):
    """Continues the step numbers of earlier rounds and marks checkpoints with their round.

    moved: the mask update with which the round began, recorded with its first step.
    """

    def __init__(self, number: int, first_step: int, moved: Mapping[str, float]) -> None:
        self.round, self.first_step, self.moved = number, first_step, moved

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:  # what a checkpoint restores counts the earlier rounds already
            # the loggers' step; a fit of its own would start it at 0 again
            trainer.fit_loop.epoch_loop._batches_that_stepped = self.first_step
            log_mask_update(trainer, self.moved, step=self.first_step)

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round}

    @staticmethod
    def of(checkpoint: Path | None) -> int | None:
        """The round that a checkpoint belongs to; None where there is none."""
        if checkpoint is None or not checkpoint.exists():
            return None
        with blame_left(checkpoint):  # of which the tensors are not read
            content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)
        number: int = content["callbacks"][RoundMark.__qualname__]["round"]
        return number


class CarriedMoments(Callback):
    """Starts a fit from the moments of the fit before, and holds its own moments at the end."""

    def __init__(self, moments: AdamStates) -> None:
        self.moments = moments

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a checkpoint's own state comes later and wins
        (optimizer,) = trainer.optimizers
        for name, parameter in pl_module.named_parameters():
            if name in self.moments:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device, copy=True)
                    for key, value in self.moments[name].items()
                }

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not on_train_end: a fit continued from the checkpoint of its last step has none
        (optimizer,) = trainer.optimizers
        names = {id(p): name for name, p in pl_module.named_parameters()}
        self.moments = {
            names[id(parameter)]: {k: value.detach().cpu().clone() for k, value in state.items()}
            for parameter, state in optimizer.state.items()
        }


def resize_moments(moments: AdamStates, model: nn.Module, used: Mapping[str, int]) -> AdamStates:
    """Moments and ages resized to the factors as they are now.

    Components that are new, hidden, or were hidden have zeros, an age of zero too.

    model: the moments' names are its parameters' names with a leading `model.`; used: the
    components of each linear that were in use so far.
    """
    moved = {}
    for name, linear in losa_linears(model).items():
        for factor, dim in (("lora_a", 0), ("lora_b", 1)):
            key, size = f"model.{name}.{factor}", len(linear.lora_a)
            stay = min(used[name], linear.rank)
            if key in moments:
                moved[key] = {
                    entry: resize(resize(m, stay, dim), size, dim)
                    for entry, m in moments[key].items()
                }
    return moved

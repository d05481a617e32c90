"""Tune one block towards given outputs while its supports hold.

    minimise  mean (f(X) - Y)^2   over whatever requires gradients in the block f

X and Y are the windows' hidden states, both in the model's dtype; the loss is fp32.  Some windows
are held out: their loss is measured after every epoch, and the block ends with the values of the
lowest loss, its starting values included, so that it never ends worse on those windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sparsemend.blocks.hidden_states import HiddenStates
from sparsemend.blocks.walk import Visit
from sparsemend.method.adapter.block_errors import channel_sums, mean_relative
from sparsemend.method.adapter.vectors import original
from sparsemend.method.held_out import training_batches
from sparsemend.sparse.linear import sparse_linears, zero_off_
from sparsemend.terminal import track
from sparsemend.training.batches import Order, StepSplit
from sparsemend.training.optimizers import make_optimizer
from sparsemend.training.plan import (
    StepPlan,
    check_choice,
    check_count,
    check_patience,
    learning_rate_schedule,
)

DECAYS = ("matrices", "all")
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(kw_only=True)
class BlockPlan(StepPlan):
    """Every knob of the fit of one block; the values live in conf/method/reconstruct.yaml."""

    epochs: int
    windows_per_step: int
    held_out: float
    patience: int | None  # None: no early stop
    decay: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "windows_per_step"):
            check_count(name, getattr(self, name))
        check_patience(self.patience)
        check_choice("decay", self.decay, DECAYS)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"method.held_out {self.held_out} is not in [0, 1)")
        if self.precision == "bf16-true":
            raise ValueError(
                "method.precision=bf16-true would round most updates of a block away; what trains "
                "is fp32 here, also in a bfloat16 model: use method.precision=32-true"
            )


@dataclass(frozen=True)
class FitOutcome:
    """The outcome of one block's fit."""

    steps: int
    stopped_early: bool


@dataclass(frozen=True)
class OutputError:
    """The distance of a block's outputs y from targets Y.

    mse: mean (y - Y)^2.  relative: the mean over channels k of |y_k - Y_k|^2 / |Y_k|^2, without
    channels whose target is zero throughout (the e_i of LoSA, Huang et al. 2025, arXiv 2502.14816).
    """

    mse: float
    relative: float


@torch.no_grad()
def block_error(visit: Visit, targets: Sequence[Tensor], *, first: int = 0) -> OutputError | None:
    """The error of the visited block as it is now over its batches from `first` on; None if none.

    targets: (B, T, D) per batch of the visit.
    """
    if first == len(targets):
        return None
    wanted = targets[first:]
    outputs = (visit.output(batch) for batch in range(first, len(targets)))
    squared, energy = channel_sums(wanted, outputs)
    sizes = visit.sizes[first:]
    count = wanted[0].numel() // sizes[0] * sum(sizes)
    return OutputError(float(squared.sum() / count), mean_relative(squared, energy))


class BlockFit:
    """The fit of one visited block; `targets` (B, T, D) per batch of the visit, where they lie.

    split: of an optimizer step into batches of the visit.
    """

    def __init__(
        self,
        visit: Visit,
        targets: HiddenStates,
        plan: BlockPlan,
        *,
        seed: int,
        split: StepSplit,
    ) -> None:
        visit.check_free()
        self.visit, self.targets, self.plan, self.seed = visit, targets, plan, seed
        self.split = split
        self.trained = training_batches(len(targets), plan.held_out, per_step=split.count)
        self.parameters = {n: p for n, p in visit.block.named_parameters() if p.requires_grad}
        self.masked = [
            (original(linear, "weight"), linear)
            for _, linear in sparse_linears(visit.block)
            if original(linear, "weight").requires_grad
        ]
        self.device = next(iter(self.parameters.values())).device

    def run(self) -> FitOutcome:
        """Take the plan's steps, or fewer where the held-out loss stops falling; keep the best."""
        plan, rows = self.plan, sum(self.visit.sizes[: self.trained])
        per_epoch = math.ceil(rows / plan.windows_per_step)
        steps = plan.epochs * per_epoch
        optimizer = make_optimizer(
            plan.optimizer,
            self.parameters,
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
            betas=plan.both_betas,
            decay_vectors=plan.decay == "all",
        )
        schedule = learning_rate_schedule(plan, optimizer, steps)
        scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "16-mixed")
        order = Order(rows, seed=self.seed)
        chosen_rows = [order.at(self.split.whole(step)) for step in range(steps)]
        progress = BestSoFar(self.held_out_loss(), self.values())
        taken = track(chosen_rows, f"block {self.visit.index + 1}/{self.visit.count}")
        for step, chosen in enumerate(taken, start=1):
            self.step(chosen, optimizer, scaler, step)
            schedule.step()
            if step % per_epoch == 0:
                progress.see(self.held_out_loss(), self.values())
                if plan.patience is not None and progress.worse_in_a_row >= plan.patience:
                    break
        if progress.best is not None:
            self.restore(progress.values)
        return FitOutcome(step, step < steps)

    def step(
        self,
        chosen: Sequence[int],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        number: int,
    ) -> None:
        """One optimizer step on the windows `chosen`; the support holds before and after it."""
        optimizer.zero_grad(set_to_none=True)
        size = self.split.at_once
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            inputs, targets = (self.gather(w, part) for w in (self.visit.inputs, self.targets))
            loss = self.loss(partial(self.visit.forward, inputs), targets)
            self.check_finite("loss", loss, number)
            # windows are of one length, so the means add up by their windows
            scaler.scale(loss * (len(part) / len(chosen))).backward()
        scaler.unscale_(optimizer)
        for weight, linear in self.masked:
            if weight.grad is not None:
                zero_off_(weight.grad, linear.keep)
        norm = get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        if not scaler.is_enabled():  # a scaler skips such a step by itself
            self.check_finite("gradient norm", norm, number)
        if self.plan.gradient_clip:
            clip_grads_with_norm_(self.parameters.values(), self.plan.gradient_clip, norm)
        scaler.step(optimizer)
        scaler.update()
        for weight, linear in self.masked:
            zero_off_(weight.detach(), linear.keep)

    def check_finite(self, what: str, value: Tensor, number: int) -> None:
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the {what} of {self.visit.name} is {float(value)} at its step {number}; lower "
                "method.learning_rate"
            )

    def loss(self, forward: Callable[[], Tensor], target: Tensor) -> Tensor:
        """Mean squared error in fp32 of an output (B, T, D) of the block."""
        dtype = AUTOCAST.get(self.plan.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            output = forward()
        return F.mse_loss(output.float(), target.to(output.device).float())

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The mean loss of the held-out windows; None where there are none."""
        held = range(self.trained, len(self.targets))
        if not held:
            return None
        sizes = self.visit.sizes
        losses = [
            float(self.loss(partial(self.visit.output, i), self.targets[i])) * sizes[i]
            for i in held
        ]
        loss = sum(losses) / sum(sizes[i] for i in held)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the held-out loss of {self.visit.name} is {loss}; lower method.learning_rate"
            )
        return loss

    def gather(self, states: HiddenStates, chosen: Sequence[int]) -> Tensor:
        """Stack the windows numbered `chosen` of batches (B, T, D); only the last B may differ."""
        size = self.visit.sizes[0]
        return torch.stack([states.row(row // size, row % size) for row in chosen])

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters.values()]

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            parameter.copy_(value)


class BestSoFar:
    """The lowest held-out loss so far and the values that gave it."""

    def __init__(self, loss: float | None, values: list[Tensor]) -> None:
        self.best = loss
        self.values = values
        self.worse_in_a_row = 0

    def see(self, loss: float | None, values: list[Tensor]) -> None:
        if loss is None or self.best is None:
            return
        if loss < self.best:
            self.best, self.values, self.worse_in_a_row = loss, values, 0
        else:
            self.worse_in_a_row += 1

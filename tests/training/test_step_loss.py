"""A step is the same however it is split: the gradient of the mean over its labelled tokens."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support import contracts
from support.contracts import bench_for, method_of, pruned_model, windows
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.method.base import Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import sparse_linears
from sparsemend.training.logits import next_token_loss
from sparsemend.training.objective import Loss
from sparsemend.training.step_loss import StepLoss

RATE = 0.5


def trained(name: str, *overrides: str, windows_per_step: int = 4) -> TrainedRepair:
    method = method_of(name, *overrides)
    assert isinstance(method, TrainedRepair)
    method.windows_per_step = windows_per_step
    return method


def unequal(out: Path, micro_batch: int | None, *extra: Callback) -> Workbench:
    """Five windows for one step, with 15, 12, 0, 3 and 1 labelled positions."""
    tokens = windows(5, seed=8)
    labels = tokens.clone()
    for row, count in enumerate((15, 12, 0, 3, 1)):
        labels[row, : 16 - count] = UNLABELLED
    bench = bench_for(out, *extra, micro_batch=micro_batch)
    return dataclasses.replace(bench, train=Examples(tokens, labels))


class Losses(Callback):
    """The training loss that was logged for each step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if "train/loss" in trainer.callback_metrics:
            self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("micro_batch", [None, 2, 1])
def test_a_step_follows_the_mean_over_its_labelled_tokens(
    micro_batch: int | None, tmp_path: Path
) -> None:
    """In micro-batches of 2, 2 and 1 windows, or with one of no label at all, too."""
    plain = ("optimizer=sgd", "gradient_clip=0", "schedule=constant", "max_steps=1")
    method = trained("masked_full", *(f"method.{knob}" for knob in plain), windows_per_step=5)
    method.learning_rate = RATE
    model, losses = pruned_model(), Losses()
    reference, bench = copy.deepcopy(model), unequal(tmp_path, micro_batch, losses)
    method.repair(model, bench)
    reference.requires_grad_(True).train()
    loss = next_token_loss(reference, bench.train.tokens, bench.train.labels)
    loss.backward()
    tuned = dict(sparse_linears(model))
    for name, linear in sparse_linears(reference):
        assert linear.weight.grad is not None
        expected = linear.weight - RATE * linear.weight.grad * linear.keep
        # sums of 31 positions in another order: fp32 rounding of a gradient, times the rate
        torch.testing.assert_close(tuned[name].weight, expected, rtol=1e-5, atol=1e-6)
    assert losses.losses[1] == pytest.approx(float(loss), rel=1e-6)


def test_a_step_without_any_labelled_token_is_refused(tmp_path: Path) -> None:
    bench = unequal(tmp_path, 1)
    labels = torch.full_like(bench.train.labels, UNLABELLED)
    bench = dataclasses.replace(bench, train=Examples(bench.train.tokens, labels))
    with pytest.raises(ValueError, match=r"the 4 windows of step 1 have no labelled token"):
        trained("masked_full").repair(pruned_model(), bench)


MOVING = {  # methods that move supports, with what makes them move in few steps
    "seft": ("method=seft",),
    "last": ("method=seft", "method.sensitivity_gradient=last"),
    "candidates": ("method=seft", "method.sensitivity_gradient=candidates"),
    "rigl": ("method=masked_full", "method.mask_update=rigl", "method.update_until=1"),
    "momentum": ("method=masked_full", "method.mask_update=rigl_momentum", "method.update_until=1"),
    "spiel": ("method=spiel",),
    "losa": ("method=losa", "method.dropout=0"),  # whose draws follow the micro-batches
}


def supports(name: str, out: Path, micro_batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(supports, weights) by name after five steps that move supports after the third."""
    member, *knobs = MOVING[name]
    steps = ("method.max_steps=5", "method.update_interval=3", "method.accumulation_steps=1")
    taken = {"method=seft": steps, "method=spiel": steps, "method=losa": steps[:1]}
    method = trained(member.removeprefix("method="), *knobs, *taken.get(member, steps[:2]))
    model = pruned_model()
    method.repair(model, bench_for(out, micro_batch=micro_batch))
    linears = dict(sparse_linears(model))
    weights = {n: linear.weight.detach() for n, linear in linears.items()}
    return {n: linear.packed_keep for n, linear in linears.items()}, weights


@pytest.mark.parametrize("name", slow_but_for(MOVING, ["seft", "rigl"]))
def test_supports_move_alike_under_micro_batches_of_1_2_and_4(name: str, tmp_path: Path) -> None:
    """A window's positions are chosen by the whole step's gradient, not by a micro-batch's."""
    start = {n: linear.packed_keep for n, linear in sparse_linears(pruned_model())}
    whole, weights = supports(name, tmp_path / "4", 4)
    assert any(not torch.equal(start[n], keep) for n, keep in whole.items())
    for micro_batch in (1, 2):
        split, near = supports(name, tmp_path / str(micro_batch), micro_batch)
        contracts.assert_same_bits(whole, split)
        for n, weight in weights.items():
            # AdamW divides by the root of the squared gradient, so that rounding of a gradient
            # near zero moves a weight by a share of the learning rate, 1e-2, per step
            torch.testing.assert_close(near[n], weight, rtol=0, atol=1e-3)


class Read(Callback):
    """The first tokens of what each step read, by step."""

    def __init__(self) -> None:
        self.steps: dict[int, list[int]] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.steps.setdefault(trainer.global_step, []).extend(batch[0][:, 0].tolist())


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
def test_a_run_continued_with_another_micro_batch_takes_the_same_steps(
    before: int, after: int, tmp_path: Path
) -> None:
    """It validates after the same ones too."""

    def fit(out: Path, micro_batch: int, *extra: Callback, resume: bool = False) -> dict[str, Any]:
        method = trained("masked_full", "method.max_steps=4", "method.validate_every=2")
        method.checkpoint_every = 1
        bench = bench_for(out, *extra, micro_batch=micro_batch)
        last = out / "checkpoints" / "last.ckpt" if resume else None
        return method.repair(pruned_model(), dataclasses.replace(bench, resume_from=last))

    whole, first, second = Read(), Read(), Read()
    expected = fit(tmp_path / "whole", after, whole)
    with pytest.raises(contracts.Interrupt):
        fit(tmp_path / "broken", before, first, contracts.InterruptBefore(3 * 4 // before))
    report = fit(tmp_path / "broken", after, second, resume=True)
    assert sorted(second.steps) == [3]
    assert second.steps[3] == whole.steps[3]
    assert report["steps"] == expected["steps"] == 4
    assert report["validation/loss"] == pytest.approx(expected["validation/loss"], rel=1e-4)


def test_a_micro_batch_without_labels_gives_no_loss_and_gradients_of_nothing() -> None:
    weight = torch.ones(3, requires_grad=True)
    step = StepLoss(10)
    returned = step.add(Loss(weight.sum() * torch.nan), 0, shares=2)
    returned.backward()
    assert returned == 0
    step.add(Loss(2 * weight.sum()), 10, shares=1).backward()
    assert step.mean(torch.device("cpu"), world=1) == 6

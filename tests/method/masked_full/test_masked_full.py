"""Supports that move while all kept weights train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support import contracts
from support.contracts import Interrupt, InterruptBefore, bench_for, bits, method_of, pruned_model
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.method.masked_full.masked_full import MaskedFull
from sparsemend.sparse.linear import check_supports, sparse_linears

RULES = ["set", "rigl", "rigl_momentum"]


def moving(rule: str, *overrides: str) -> MaskedFull:
    """Eight steps; the support moves after steps 3 and 6."""
    method = method_of("masked_full", f"method.mask_update={rule}", *overrides)
    assert isinstance(method, MaskedFull)
    method.max_steps, method.update_interval, method.update_until = 8, 3, 1.0
    return method


@pytest.mark.parametrize("rule", RULES)
def test_the_support_moves_and_keeps_its_size(rule: str, tmp_path: Path) -> None:
    model = pruned_model()
    before = {n: linear.keep.clone() for n, linear in sparse_linears(model)}
    watch = contracts.WatchSupports()
    report = moving(rule).repair(model, bench_for(tmp_path, watch))
    assert watch.checked == 8
    check_supports(model)
    rounds = report["evolution"]["rounds"]
    assert [one["step"] for one in rounds] == [3, 6]
    for i, (name, linear) in enumerate(sparse_linears(model)):
        assert int(linear.keep.sum()) == int(before[name].sum())
        assert int((linear.keep & before[name]).sum()) == rounds[-1]["overlap"][i]
        assert rounds[-1]["overlap"][i] < int(before[name].sum())


def test_weights_that_could_not_move_are_refused_with_the_model_alone() -> None:
    model = pruned_model().to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"set model\.dtype=float32"):
        method_of("masked_full").check_model(model, None)
    method_of("masked_full", "method.precision=bf16-true").check_model(model, None)
    method_of("masked_full").check_model(pruned_model(), None)


class Spy(Callback):
    """Gradients of the first linear before masking, its weight and state around the update."""

    def __init__(self) -> None:
        self.gradient: Tensor | None = None
        self.keep: Tensor | None = None

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 2:
            _, linear = next(iter(sparse_linears(pl_module)))
            assert linear.weight.grad is not None
            self.gradient, self.keep = linear.weight.grad.clone(), linear.keep.clone()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == 3:
            _, linear = next(iter(sparse_linears(pl_module)))
            self.after, self.weight = linear.keep.clone(), linear.weight.detach().clone()
            state = trainer.optimizers[0].state[linear.weight]
            self.moments = {n: state[n].clone() for n in ("exp_avg", "exp_avg_sq")}


def test_rigl_grows_the_largest_gradients_at_zero_and_without_moments(tmp_path: Path) -> None:
    spy = Spy()
    method = moving("rigl")
    own = method.callbacks
    method.callbacks = lambda: [*own(), spy]  # type: ignore[method-assign]
    method.repair(pruned_model(), bench_for(tmp_path))
    assert spy.gradient is not None
    assert spy.keep is not None
    grown = spy.after & ~spy.keep
    assert grown.any()
    assert not spy.weight[grown].any()
    assert not any(moment[grown].any() for moment in spy.moments.values())
    assert any(moment[spy.after & ~grown].any() for moment in spy.moments.values())
    left_out = ~spy.keep & ~grown
    assert spy.gradient[grown].abs().min() >= spy.gradient[left_out].abs().max()


@pytest.mark.parametrize("rule", slow_but_for(RULES, ["rigl_momentum"]))
def test_a_killed_fit_resumes_to_the_same_bits(rule: str, tmp_path: Path) -> None:
    whole = pruned_model()
    moving(rule).repair(whole, bench_for(tmp_path / "whole"))
    for step in (2, 3):
        out = tmp_path / str(step)
        with pytest.raises(Interrupt):
            moving(rule).repair(pruned_model(), bench_for(out, InterruptBefore(step)))
        model, bench = pruned_model(), bench_for(out)
        object.__setattr__(bench, "resume_from", out / "checkpoints" / "last.ckpt")
        moving(rule).repair(model, bench)
        contracts.assert_same_bits(bits(whole), bits(model))


def test_muons_momentum_forgets_what_moved_too(tmp_path: Path) -> None:
    moving("rigl", "method.optimizer=muon").repair(pruned_model(), bench_for(tmp_path))


def test_a_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"breaks pattern 2:4; set method.mask_update=none"):
        moving("set").repair(pruned_model("2:4"), bench_for(tmp_path, pattern="2:4"))

"""What every repair method promises, as functions a test can call on any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from support.configs import compose
from support.families import random_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.data.base import Examples
from sparsemend.method.adapter.head import HeadLinear
from sparsemend.method.base import RepairMethod, Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.prune import prune
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

SPARSITY = 0.5
STEPS = 3
# small enough for a test, large enough that something moves
SMALL = {
    "max_steps": STEPS,
    "learning_rate": 1e-2,
    "windows_per_step": 2,
    "validate_every": 100,
    "checkpoint_every": 1,
    "warmup_fraction": 0.0,
    "rank": 2,
    "groups": 2,
    "init_samples": 4,
    "max_cycles": 5,
    "update_interval": 3,
    "accumulation_steps": 1,
    "initial_drop_rate": 0.5,
    "budget": {"match": "density", "density": 0.1, "deltas": None, "lora_rank": 1},
    "rounds": 2,
    "similarity_samples": 4,
    "epochs": 2,
}


def method_of(name: str, *overrides: str) -> RepairMethod:
    """The method as its yaml configures it, shortened by SMALL in keys that nobody overrides."""
    settings = compose("run", [f"method={name}", *overrides]).method
    chosen = {override.partition("=")[0].removeprefix("method.") for override in overrides}
    for key, value in SMALL.items():
        if key in settings and key not in chosen:
            settings[key] = value
    method = instantiate(
        settings, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
    )
    assert isinstance(method, RepairMethod)
    return method


class Interrupt(Exception):
    pass


class InterruptBefore(Callback):
    """Ends a repair just before optimizer step `step` (0-based), counted over all its fits."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.step == 0:
            raise Interrupt
        self.step -= 1


def trainer_factory(out: Path, *extra: Callback) -> Callable[..., Trainer]:
    def make(*, callbacks: list[Callback], **settings: Any) -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[*callbacks, *extra],
            default_root_dir=out,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    return make


def pruned_model(pattern: str = "unstructured", *, family: str = "llama") -> PreTrainedModel:
    """A tiny random model at SPARSITY."""
    model = random_model(family)
    parsed = Pattern.parse(pattern)
    calibration = Calibration((windows(8),))
    allocation = Uniform().allocate(model, calibration, SPARSITY, parsed)
    prune(model, calibration, Wanda(variant=False), allocation, parsed)
    return model


def windows(count: int, seed: int = 7) -> Tensor:
    return torch.randint(3, 96, (count, 16), generator=torch.Generator().manual_seed(seed))


def bench_for(
    out: Path,
    *extra: Callback,
    pattern: str = "unstructured",
    family: str = "llama",
    micro_batch: int | None = None,
) -> Workbench:
    model = random_model(family)
    parsed = Pattern.parse(pattern)
    return Workbench(
        calibration=Calibration((windows(8),), device=torch.device("cpu")),
        train=Examples.of(windows(12, seed=8)),
        validation=Examples.of(windows(4, seed=9)),
        pruner=Wanda(variant=False),
        allocation=Uniform().allocate(model, Calibration(()), SPARSITY, parsed),
        sparsity=SPARSITY,
        pattern=parsed,
        load_dense=lambda: random_model(family),
        make_trainer=trainer_factory(out, *extra),
        device=torch.device("cpu"),
        out=out,
        seed=0,
        micro_batch=micro_batch,
    )


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=windows(2, seed=3), use_cache=False).logits


def bits(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def check_supports_hold(method: RepairMethod, out: Path, pattern: str = "unstructured") -> None:
    """After repair the zeros are exact and as many as before, in plain SparseLinears."""
    model = pruned_model(pattern)
    before = {name: int(linear.keep.sum()) for name, linear in sparse_linears(model)}
    method.repair(model, bench_for(out, pattern=pattern))
    check_supports(model)  # the base alone where the method is not foldable
    if not method.foldable:
        return
    after = {name: int(linear.keep.sum()) for name, linear in sparse_linears(model)}
    if method.reallocates:
        # of each row the pruner keeps less than one weight more than its rate asks for
        rows = sum(linear.out_features for _, linear in sparse_linears(model))
        assert 0 <= sum(after.values()) - sum(before.values()) <= rows
    else:
        assert after == before
    for linear in prunable_linears(model).values():
        assert type(linear) is SparseLinear
        assert int(linear.weight.count_nonzero()) <= int(linear.keep.sum())
        if pattern != "unstructured":
            parsed = Pattern.parse(pattern)
            groups = linear.keep.view(linear.out_features, -1, parsed.group_size).sum(dim=2)
            assert torch.all(groups == parsed.kept)


class WatchSupports(Callback):
    """Checks every support after each micro-batch, as the next one would find it."""

    def __init__(self) -> None:
        self.checked = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        check_supports(pl_module)
        self.checked += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_supports(pl_module)


def check_supports_hold_after_every_step(method: TrainedRepair, out: Path) -> None:
    watch = WatchSupports()
    micro_batch = 1
    method.repair(pruned_model(), bench_for(out, watch, micro_batch=micro_batch))
    assert watch.checked == STEPS * method.windows_per_step // micro_batch


def check_attaching_is_invisible(method: TrainedRepair, out: Path) -> None:
    model = pruned_model()
    before = logits(model)
    method.attach(model, bench_for(out))
    assert any(has_adapter(m) for m in model.modules()) or method.trainable(model)
    assert torch.equal(logits(model), before)


def check_only_what_is_trained_moves(method: TrainedRepair, out: Path) -> None:
    model = pruned_model()
    reference = copy.deepcopy(model)
    method.attach(reference, bench_for(out))
    trained = {id(p) for p in method.trainable(reference)}
    frozen = {n for n, p in reference.named_parameters() if id(p) not in trained}
    before = bits(model)
    report = method.repair(model, bench_for(out))
    assert report["steps"] == STEPS
    after = bits(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    moved |= after.keys() - before.keys()  # an adapter that stays
    assert moved, "training changed nothing"
    adapted = {name for name, m in reference.named_modules() if has_adapter(m)}
    untouchable = {n for n in frozen if n.rpartition(".")[0] not in adapted} & before.keys()
    assert not moved & untouchable


def has_adapter(module: nn.Module) -> bool:
    adapted = isinstance(module, SparseLinear) and type(module) is not SparseLinear
    return adapted or isinstance(module, HeadLinear)


def check_fold_equals_adapter_forward(method: TrainedRepair, out: Path) -> None:
    """With adapters moved off their start, folding leaves the logits (fp32 rounding apart).

    A method that is dense while it trains and foldable must only leave a sparse model here.
    """
    model = pruned_model()
    method.attach(model, bench_for(out))
    generator = torch.Generator().manual_seed(5)
    adapters = [p for m in model.modules() if has_adapter(m) for p in m.parameters(recurse=False)]
    chosen = {id(p) for p in method.trainable(model)}
    with torch.no_grad():
        for parameter in adapters:
            if id(parameter) in chosen:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    before = logits(model)
    method.fold(model)
    check_supports(model)
    if method.foldable and not method.holds_support:
        assert not any(has_adapter(m) for m in model.modules())
        return
    # one fp32 rounding of the weight against none, carried through three blocks
    after = logits(model)
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())


def check_same_seed_gives_same_bits(make: Callable[[], RepairMethod], out: Path) -> None:
    results = []
    for part in ("one", "two"):
        model = pruned_model()
        make().repair(model, bench_for(out / part))
        results.append(bits(model))
    assert_same_bits(*results)


def check_resume_equals_uninterrupted(make: Callable[[], TrainedRepair], out: Path) -> None:
    whole = pruned_model()
    make().repair(whole, bench_for(out / "whole"))
    broken = pruned_model()
    try:
        make().repair(broken, bench_for(out / "broken", InterruptBefore(2)))
    except Interrupt:
        pass
    else:
        raise AssertionError("the fit was not interrupted")
    checkpoint = out / "broken" / "checkpoints" / "last.ckpt"
    resumed = pruned_model()
    bench = bench_for(out / "broken")
    object.__setattr__(bench, "resume_from", checkpoint)
    make().repair(resumed, bench)
    assert_same_bits(bits(whole), bits(resumed))

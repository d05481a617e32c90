import copy
import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support import contracts
from support.contracts import bench_for, bits, method_of, pruned_model, trainer_factory
from support.tiers import slow_but_for
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.method.base import Workbench
from sparsemend.method.masked_full.masked_full import MaskedFull
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears
from sparsemend.training import objective
from sparsemend.training.batches import (
    Order,
    SteppedBatches,
    StepSplit,
    count_labels,
    mean_loss,
)
from sparsemend.training.callbacks import Pace
from sparsemend.training.logits import next_token_loss
from sparsemend.training.mask_callbacks import EnforceMasks, UpdateMasks
from sparsemend.training.module import RepairModule


class SwapFirst(UpdateMasks):
    """After step 2, moves the support of every linear one column to the right."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def due(self, step: int) -> bool:
        return step == 2

    def update(
        self, module: LightningModule, optimizer: Optimizer, step: int
    ) -> Mapping[str, float]:
        self.steps.append(step)
        for _, linear in sparse_linears(module):
            keep = linear.keep.roll(1, dims=1)
            linear.set_effective_(linear.weight.detach(), keep)
        return {}


class Ordered(MaskedFull):
    order: list[Callback]

    def callbacks(self) -> list[Callback]:
        return self.order


class Dropping(MaskedFull):
    """Adds dropout to every MLP."""

    def attach(self, model: PreTrainedModel, bench: contracts.Workbench) -> None:
        for block in model.model.layers:
            block.mlp.register_forward_hook(
                lambda module, given, output: torch.dropout(output, 0.5, module.training)
            )


def with_callbacks(order: list[Callback]) -> Ordered:
    method = method_of("masked_full")
    assert isinstance(method, MaskedFull)
    method.__class__ = Ordered
    method.order = order
    return method


class Watch(Callback):
    """Records, at every batch start, whether all supports hold and gradients seen by the step."""

    def __init__(self) -> None:
        self.escaped = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        check_supports(pl_module)


def test_supports_hold_between_all_steps_under_decay_and_momentum(tmp_path: Path) -> None:
    method = method_of("masked_full", "method.weight_decay=0.1")
    method.repair(pruned_model(), bench_for(tmp_path, Watch()))


def test_optimizer_state_stays_zero_off_the_support(tmp_path: Path) -> None:
    seen: list[float] = []

    class Look(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            state = trainer.optimizers[0].state
            for _, linear in sparse_linears(pl_module):
                moment = state[linear.weight]["exp_avg"]
                seen.append(float(moment.masked_fill(linear.keep, 0).abs().max()))

    method_of("masked_full").repair(pruned_model(), bench_for(tmp_path, Look()))
    assert seen
    assert max(seen) == 0.0


def test_the_order_of_the_mask_callbacks_does_not_matter(tmp_path: Path) -> None:
    results = []
    for name in ("enforce_first", "update_first"):
        callbacks: list[Callback] = [EnforceMasks(), SwapFirst()]
        if name == "update_first":
            callbacks.reverse()
        model = pruned_model()
        with_callbacks(callbacks).repair(model, bench_for(tmp_path / name))
        results.append(bits(model))
    contracts.assert_same_bits(*results)


def test_masks_update_once_per_optimizer_step_under_accumulation(tmp_path: Path) -> None:
    swap = SwapFirst()
    method = with_callbacks([EnforceMasks(), swap])
    method.repair(pruned_model(), bench_for(tmp_path, micro_batch=1))
    assert swap.steps == [2]


def test_checkpoints_hold_only_what_is_trained(tmp_path: Path) -> None:
    method_of("masked_lora").repair(pruned_model(), bench_for(tmp_path))
    for name in ("last", "best"):
        saved = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=False)
        assert {n.rpartition(".")[2] for n in saved["state_dict"]} == {"lora_a", "lora_b"}
        assert ("optimizer_states" in saved) == (name == "last")


def test_supports_that_a_callback_moves_are_in_its_checkpoints(tmp_path: Path) -> None:
    method = with_callbacks([EnforceMasks(), SwapFirst()])
    model = pruned_model()
    method.repair(model, bench_for(tmp_path))
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    for name, linear in sparse_linears(model):
        assert torch.equal(state[f"model.{name}.packed_keep"], linear.packed_keep)


def test_a_support_that_moves_unannounced_is_not_saved_over(tmp_path: Path) -> None:
    class Sly(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            SwapFirst().update(pl_module, trainer.optimizers[0], 1)

    with pytest.raises(RuntimeError, match="a callback that moves supports is an UpdateMasks"):
        method_of("masked_full").repair(pruned_model(), bench_for(tmp_path, Sly()))


# seft moves its supports, over a base that is where the first ones were
@pytest.mark.parametrize("name", slow_but_for(["masked_lora", "seft"], ["seft"]))
def test_a_checkpoint_of_other_supports_is_refused(name: str, tmp_path: Path) -> None:
    method_of(name).repair(pruned_model(), bench_for(tmp_path))
    other = pruned_model()
    _, linear = next(sparse_linears(other))
    linear.set_effective_(linear.weight.detach(), linear.keep.roll(1, dims=1))
    bench = dataclasses.replace(
        bench_for(tmp_path), resume_from=tmp_path / "checkpoints" / "last.ckpt"
    )
    with pytest.raises(ValueError, match=r"trained on other supports .* resume=null"):
        method_of(name).repair(other, bench)


def test_the_best_validation_weights_are_kept(tmp_path: Path) -> None:
    losses: list[float] = []

    class Losses(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            losses.append(float(trainer.callback_metrics["validation/loss"]))

    method = method_of("masked_full", "method.schedule=constant", "method.gradient_clip=0")
    assert isinstance(method, MaskedFull)
    method.learning_rate, method.validate_every, method.max_steps = 3.0, 1, 6
    model = pruned_model()
    report = method.repair(model, bench_for(tmp_path, Losses()))
    assert min(losses) < losses[-1], "the last step must not be the best for this test to tell"
    assert report["validation/loss"] == min(losses)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=False)
    assert best["global_step"] == 1 + losses.index(min(losses))
    for name, linear in sparse_linears(model):
        assert torch.equal(best["state_dict"][f"model.{name}.weight"], linear.weight)


def test_without_keep_best_a_fit_ends_with_its_last_weights(tmp_path: Path) -> None:
    method = method_of("masked_full", "method.schedule=constant", "method.gradient_clip=0")
    assert isinstance(method, MaskedFull)
    method.learning_rate, method.validate_every, method.keep_best = 3.0, 1, False
    model = pruned_model()
    method.repair(model, bench_for(tmp_path))
    best, last = (
        torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=False)["state_dict"]
        for name in ("best", "last")
    )
    name, linear = next(sparse_linears(model))
    assert torch.equal(linear.weight, last[f"model.{name}.weight"])
    assert not torch.equal(linear.weight, best[f"model.{name}.weight"])  # for this to tell


@pytest.mark.parametrize(("patience", "steps"), [(1, 2), (None, 4)])
def test_without_patience_a_fit_that_gets_no_better_goes_on(
    patience: int | None, steps: int, tmp_path: Path
) -> None:
    method = method_of("masked_full", "method.schedule=constant", "method.gradient_clip=0")
    assert isinstance(method, MaskedFull)
    method.learning_rate, method.validate_every, method.max_steps = 1e-30, 1, 4
    method.patience = patience
    assert method.repair(pruned_model(), bench_for(tmp_path))["steps"] == steps


def test_an_interrupted_fit_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(contracts.Interrupt):
        method_of("masked_lora").repair(
            pruned_model(), bench_for(tmp_path, contracts.InterruptBefore(2))
        )
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 2


@pytest.mark.slow
def test_grouped_examples_are_read_the_same_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And batches are shorter than without grouping, where short and long examples take turns."""
    lengths: list[int] = []

    def bench(out: Path, *extra: Callback, **settings: Any) -> Workbench:
        made = bench_for(out, *extra, **settings)
        tokens = made.train.tokens.repeat(3, 1)
        labels = tokens.clone()
        labels[::2, 4:] = UNLABELLED
        return dataclasses.replace(made, train=Examples(tokens, labels))

    def loss(model: PreTrainedModel, tokens: Tensor, labels: Tensor) -> Tensor:
        lengths.append(tokens.shape[1])
        return next_token_loss(model, tokens, labels)

    monkeypatch.setattr(contracts, "bench_for", bench)
    contracts.check_resume_equals_uninterrupted(
        lambda: method_of("masked_full", "method.group_by_length=true"), tmp_path
    )
    monkeypatch.setattr(objective, "next_token_loss", loss)
    for grouped in ("true", "false"):
        method = method_of("masked_full", f"method.group_by_length={grouped}", "method.max_steps=6")
        method.repair(pruned_model(), bench(tmp_path / grouped))
    assert len(lengths) == 12
    assert 4 in lengths[:6]
    assert sum(lengths[:6]) < sum(lengths[6:])


def test_grouping_is_refused_where_windows_stay_whole() -> None:
    with pytest.raises(ValueError, match=r"method\.group_by_length=true saves nothing"):
        _ = method_of("masked_full", "method.group_by_length=true", "method.compile=true")


def test_a_resume_knows_the_validations_before_it(tmp_path: Path) -> None:
    """The best weights lie before the break here; a resume that forgot them would differ."""

    def make() -> MaskedFull:
        method = method_of("masked_full", "method.schedule=constant", "method.gradient_clip=0")
        assert isinstance(method, MaskedFull)
        method.learning_rate, method.validate_every = 3.0, 1
        return method

    contracts.check_resume_equals_uninterrupted(make, tmp_path)


def test_the_last_steps_are_validated_too(tmp_path: Path) -> None:
    method = method_of("masked_full")
    assert isinstance(method, MaskedFull)
    method.validate_every = 2  # of 3 steps
    report = method.repair(pruned_model(), bench_for(tmp_path))
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=False)
    assert best["global_step"] == report["steps"] == contracts.STEPS


def test_a_step_is_timed_without_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves by 1 s when it is read, as it is twice in each of two micro-batches."""
    clock = iter(range(1000))
    monkeypatch.setattr("sparsemend.training.callbacks.perf_counter", lambda: float(next(clock)))
    method = method_of("masked_full", "method.windows_per_step=2")
    assert isinstance(method, MaskedFull)
    method.validate_every = 1
    bench = dataclasses.replace(bench_for(tmp_path), micro_batch=1)
    assert method.repair(pruned_model(), bench)["step_seconds"] == 2.0


def test_steps_of_an_earlier_attempt_are_not_timed() -> None:
    pace = Pace(method_of("masked_full").plan)
    pace.on_train_start(SimpleNamespace(global_step=3), None)  # type: ignore[arg-type]
    pace._seconds = 4.0
    assert pace.step_seconds(5) == 2.0
    assert pace.step_seconds(3) is None


def test_dropout_draws_the_same_after_a_resume(tmp_path: Path) -> None:
    def make() -> Dropping:
        method = method_of("masked_full")
        method.__class__ = Dropping
        assert isinstance(method, Dropping)
        return method

    contracts.check_resume_equals_uninterrupted(make, tmp_path)


def test_activation_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    results = []
    for on in (False, True):
        bench = dataclasses.replace(bench_for(tmp_path / str(on)), activation_checkpointing=on)
        model = pruned_model()
        method_of("masked_lora").repair(model, bench)
        assert not model.is_gradient_checkpointing
        results.append(bits(model))
    contracts.assert_same_bits(*results)


def test_weights_in_half_precision_are_not_trained_in_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=float32"):
        method_of("masked_full").repair(pruned_model().bfloat16(), bench_for(tmp_path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps=0", "max_steps 0 is below 1"),
        ("precision=16-true", "32-true, bf16-mixed, 16-mixed, bf16-true"),
        ("schedule=cosin", "constant, constant_with_warmup, cosine"),
        ("learning_rate=0", r"learning_rate 0\.0 is not above 0"),
        ("warmup_fraction=2", r"is not in \[0, 1\]"),
        ("min_learning_rate=0.5", r"min_learning_rate 0\.5 is not in \[0, method\.learning_rate"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(override: str, message: str) -> None:
    key, _, value = override.partition("=")
    settings = vars(method_of("masked_full"))
    parsed = type(settings[key])(value)
    with pytest.raises(ValueError, match=message):
        MaskedFull(**{**settings, key: parsed})


@pytest.mark.parametrize(
    "name",
    slow_but_for(
        ["masked_lora", "lors", "spp", "lora_prune", "masked_full"], ["lors", "masked_full"]
    ),
)
def test_bf16_true_trains_in_bf16_and_holds_the_zeros(name: str, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Dtypes(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.update(p.dtype for p in pl_module.parameters() if p.requires_grad)

    model = pruned_model().bfloat16()
    before = bits(model)
    method_of(name, "method.precision=bf16-true").repair(model, bench_for(tmp_path, Dtypes()))
    assert seen == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert any(not torch.equal(before[n], value) for n, value in bits(model).items())
    check_supports(model)


def test_rotary_frequencies_stay_fp32_in_bf16_training(tmp_path: Path) -> None:
    model = pruned_model().bfloat16()
    frequencies = {n: b for n, b in model.named_buffers() if "inv_freq" in n}
    before = {n: b.clone() for n, b in frequencies.items()}
    method_of("lors", "method.precision=bf16-true").repair(model, bench_for(tmp_path))
    after = dict(model.named_buffers())
    assert before
    assert all(torch.equal(after[n], b) and after[n].dtype == b.dtype for n, b in before.items())


def test_muon_trains_the_same_after_a_resume(tmp_path: Path) -> None:
    def make() -> MaskedFull:
        method = method_of("masked_full", "method.optimizer=muon", "method.scope=all")
        assert isinstance(method, MaskedFull)
        return method

    contracts.check_resume_equals_uninterrupted(make, tmp_path)


def test_eight_bit_adamw_trains_the_same_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")

    def make() -> MaskedFull:
        method = method_of("masked_full", "method.optimizer=adamw_8bit", "method.scope=all")
        assert isinstance(method, MaskedFull)
        return method

    contracts.check_resume_equals_uninterrupted(make, tmp_path)


def test_eight_bit_adamw_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes, or use method"):
        MaskedFull(**{**vars(method_of("masked_full")), "optimizer": "adamw_8bit"})


def test_an_unknown_optimizer_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match="adamw, sgd, muon"):
        MaskedFull(**{**vars(method_of("masked_full")), "optimizer": "adamv"})


class Poison(Callback):
    """Makes a trained parameter NaN, or its gradient, at optimizer step `step` (0-based)."""

    def __init__(self, step: int, *, gradient: bool) -> None:
        self.step, self.gradient = step, gradient

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step and not self.gradient:
            self._poison(pl_module, lambda p: p)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step and self.gradient:
            self._poison(pl_module, lambda p: p.grad)

    def _poison(self, module: LightningModule, part: Any) -> None:
        parameter = next(p for p in module.parameters() if p.requires_grad)
        with torch.no_grad():
            part(parameter).flatten()[0] = torch.nan


@pytest.mark.parametrize(("gradient", "what"), [(False, "loss is nan"), (True, "gradient norm")])
def test_what_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(
    gradient: bool, what: str, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError, match=rf"{what}.* at step 3 of 3"):
        method_of("masked_lora").repair(
            pruned_model(), bench_for(tmp_path, Poison(2, gradient=gradient))
        )
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_a_checkpoint_with_an_escaped_weight_is_not_written(tmp_path: Path) -> None:
    class Escape(Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            module = args[1]
            _, linear = next(iter(sparse_linears(module)))
            with torch.no_grad():
                linear.weight[~linear.keep] = 1e-3

    # a method that forgot EnforceMasks, and something that writes off the support
    method = with_callbacks([Escape()])
    with pytest.raises(RuntimeError, match=r"layers\.0\.\S*: \d+ weights off the support"):
        method.repair(pruned_model(), bench_for(tmp_path))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_unlabelled_tokens_do_not_count(tmp_path: Path) -> None:
    """Training on prompts that are masked equals training where the prompts' loss is removed."""
    tokens = contracts.windows(4)
    labels = tokens.clone()
    labels[:, :10] = UNLABELLED
    model = pruned_model()
    losses = torch.nn.functional.cross_entropy(
        model(input_ids=tokens).logits[:, 9:-1].flatten(0, 1), tokens[:, 10:].flatten()
    )
    torch.testing.assert_close(next_token_loss(model, tokens, labels), losses)
    assert count_labels(labels) == 4 * (tokens.shape[1] - 10)


@pytest.mark.parametrize("name", ["masked_lora", "losa"])
@pytest.mark.parametrize("patience", ["1", "null"])
def test_validation_windows_without_a_label_are_refused_before_the_fit(
    name: str, patience: str, tmp_path: Path
) -> None:
    method = method_of(name, f"method.patience={patience}", "method.validation_windows=2")
    tokens = contracts.windows(4)
    labels = tokens.clone()
    labels[:2] = UNLABELLED
    bench = dataclasses.replace(bench_for(tmp_path), validation=Examples(tokens, labels))
    with pytest.raises(ValueError, match=r"the 2 validation windows that method.*=2 reads have no"):
        method.repair(pruned_model(), bench)
    assert not any(tmp_path.iterdir())


def test_a_fit_without_validation_windows_is_not_validated(tmp_path: Path) -> None:
    bench = dataclasses.replace(bench_for(tmp_path), validation=Examples.of(contracts.windows(0)))
    assert method_of("masked_lora").repair(pruned_model(), bench)["validation/loss"] is None


def test_a_model_measured_on_a_device_can_be_written_to_afterwards(tmp_path: Path) -> None:
    """Inference mode forbids it for whatever is moved within; `cpu:0` is a move from `cpu`."""
    model, examples = pruned_model(), bench_for(tmp_path).validation
    mean_loss(model, examples, torch.device("cpu", 0), 2)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_two_processes_read_what_one_reads() -> None:
    def read(rank: int, world: int) -> list[list[int]]:
        split = StepSplit(windows=4, micro_batch=None, rank=rank, world=world)
        return list(SteppedBatches(Order(7, seed=1), split, steps=5, start=lambda: 1))

    whole, first, second = read(0, 1), read(0, 2), read(1, 2)
    assert len(whole) == 4
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(w) for w in whole]


def test_cosine_ends_at_the_minimum_learning_rate(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    method = method_of("masked_full", "method.schedule=cosine")
    assert isinstance(method, MaskedFull)
    method.max_steps, method.learning_rate, method.min_learning_rate = 4, 1.0, 0.2
    method.repair(pruned_model(), bench_for(tmp_path, Rates()))
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx(expected)


def test_a_line_reports_losses_and_pace_within_80_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        method_of("masked_lora").repair(pruned_model(), bench_for(tmp_path))
    line = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("step"))
    longest = re.sub(r"[\d,]+ tokens/s", "123,456 tokens/s", line).replace("3/3", "1000/1000")
    assert len(longest) <= 80 - len("00:00:00 ")  # however fast this machine is
    assert re.search(r"step 3/3  loss \d\.\d+  validation \d\.\d+  [\d,]+ tokens/s$", line)


def test_a_broken_projection_would_be_seen() -> None:
    model = copy.deepcopy(pruned_model())
    name, linear = next(iter(sparse_linears(model)))
    assert isinstance(linear, SparseLinear)
    with torch.no_grad():
        linear.weight[~linear.keep] = 1e-6
    with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
        check_supports(model)


class Reader(Callback):
    """Notes the first token of every window, and what the generator would draw."""

    def __init__(self) -> None:
        self.read: list[tuple[list[int], float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *given: Any) -> None:
        self.read.append((given[1][0][:, 0].tolist(), float(torch.rand(()))))


def test_a_later_fit_goes_on_where_an_earlier_one_stopped(tmp_path: Path) -> None:
    """Windows and draws of 2 + 3 steps are those of 5 in one fit."""
    method = method_of("masked_full")
    assert isinstance(method, MaskedFull)

    def read(steps: int, first_step: int) -> list[tuple[list[int], float]]:
        method.max_steps = steps
        model, bench = pruned_model(), bench_for(tmp_path)
        method.free_trainable(model)
        module = RepairModule(
            model,
            method.plan,
            method.callbacks(),
            method.make_optimizer,
            bench.train,
            bench.validation,
            seed=3,
            micro_batch=1,
            first_step=first_step,
        )
        reader = Reader()
        module.fit(trainer_factory(tmp_path, reader), out=tmp_path, resume_from=None)
        return reader.read

    assert read(2, 0) + read(3, 2) == read(5, 0)


class InterruptWithin(Callback):
    """Ends a fit before the micro-batch `number` (0-based) of the optimizer step `step`."""

    def __init__(self, step: int, number: int, micro_batches: int) -> None:
        self.step, self.number, self.micro_batches = step, number, micro_batches

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step, batch_idx % self.micro_batches) == (self.step, self.number):
            raise contracts.Interrupt


def test_a_fit_resumed_and_killed_within_an_accumulation_resumes_to_the_same_bits(
    tmp_path: Path,
) -> None:
    """Its checkpoint is not written again after the first micro-batch of the resumed step."""

    def method() -> TrainedRepair:
        made = method_of("masked_full")
        assert isinstance(made, TrainedRepair)
        made.checkpoint_every = 1
        made.validate_every, made.max_steps = 100, 4
        return made

    undisturbed = pruned_model()
    method().repair(undisturbed, bench_for(tmp_path / "whole", micro_batch=1))
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    for number, resume_from in ((0, None), (1, last)):
        bench = bench_for(tmp_path / "broken", InterruptWithin(2, number, 2), micro_batch=1)
        with pytest.raises(contracts.Interrupt):
            method().repair(pruned_model(), dataclasses.replace(bench, resume_from=resume_from))
    model = pruned_model()
    bench = dataclasses.replace(bench_for(tmp_path / "broken", micro_batch=1), resume_from=last)
    method().repair(model, bench)
    resumed, whole = bits(model), bits(undisturbed)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize(("first", "then"), slow_but_for([(None, 1), (1, None)], [(None, 1)]))
def test_a_fit_goes_on_in_other_micro_batches(
    first: int | None, then: int | None, tmp_path: Path
) -> None:
    """Steps are whole: another card takes fewer or more windows at once."""
    whole, model = pruned_model(), pruned_model()
    method_of("masked_full").repair(whole, bench_for(tmp_path / "whole"))
    out = tmp_path / "parts"
    stop = InterruptWithin(1, 0, 2 if first else 1)
    with pytest.raises(contracts.Interrupt):
        method_of("masked_full").repair(pruned_model(), bench_for(out, stop, micro_batch=first))
    bench = dataclasses.replace(
        bench_for(out, micro_batch=then), resume_from=out / "checkpoints" / "last.ckpt"
    )
    assert method_of("masked_full").repair(model, bench)["steps"] == contracts.STEPS
    # three steps of AdamW, whose first is the gradient over its own size
    for name, value in bits(whole).items():
        assert torch.allclose(bits(model)[name], value, rtol=1e-4, atol=1e-5), name

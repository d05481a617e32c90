"""SEFT as a whole: what it finds, what it refuses, what a checkpoint of it holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support import contracts
from support.contracts import Interrupt, InterruptBefore, bench_for, bits, method_of, pruned_model
from support.families import FAMILIES, random_model
from support.tiers import slow_but_for
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.blocks.find import prunable_linears
from sparsemend.method.adapter.delta.linear import DeltaLinear, delta_linears
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.adapter.delta.slot_adamw import SlotAdamW
from sparsemend.method.adapter.delta.window import Window
from sparsemend.method.seft.linear import SeftLinear
from sparsemend.method.seft.rounds import Adaptation, SeftRounds
from sparsemend.method.seft.seft import Seft
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears
from sparsemend.training.logits import next_token_loss


def seft(*overrides: str) -> Seft:
    """Ten steps with rounds after 2, 6 and 10, every linear with deltas for a tenth of it."""
    method = method_of("seft", *overrides)
    assert isinstance(method, Seft)
    method.max_steps = 10
    method.update_interval, method.accumulation_steps = 4, 2
    method.__post_init__()
    return method


# the planted problem: a linear teacher, a student pruned at wrong positions

OUTPUTS, INPUTS, KEPT, WRONG, DELTAS = 16, 32, 128, 48, 64


def planted() -> tuple[Tensor, SparseLinear]:
    """(teacher (O, I), student): 48 of the teacher's 128 weights pruned, noise kept instead."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(OUTPUTS * INPUTS, generator=generator)
    teacher = torch.zeros(OUTPUTS * INPUTS)
    sign = torch.randint(0, 2, (KEPT,), generator=generator) * 2.0 - 1
    teacher[order[:KEPT]] = sign * (0.5 + torch.rand(KEPT, generator=generator))
    student = torch.zeros_like(teacher)
    right = order[: KEPT - WRONG]
    student[right] = teacher[right]
    student[order[KEPT : KEPT + WRONG]] = 0.05 * torch.randn(WRONG, generator=generator)
    weight = nn.Parameter(student.view(OUTPUTS, INPUTS), requires_grad=False)
    return teacher.view(OUTPUTS, INPUTS), SparseLinear(weight, None, weight != 0)


def evolved(growth: str, *, protected: bool = True) -> tuple[float, float, int]:
    """(share of the teacher's support found, loss at the end, non-zeros) after 300 steps."""
    teacher, base = planted()
    kept = base.keep.view(-1).nonzero().view(-1)
    generator = torch.Generator().manual_seed(1)
    start = kept[torch.randperm(KEPT, generator=generator)[:DELTAS]]
    layer = SeftLinear(
        base,
        start,
        "gather",
        growth=growth,
        untouched_candidates=False,
        refill=False,
        rewrites_base=False,
    )
    rule = Adaptation(
        adapt=True,
        scope="layer",
        candidates="all",
        score="sensitivity",
        refill=False,
        fold=False,
        within=None,
    )
    schedule = RoundSchedule(
        interval=10, window=3, steps=300, initial=0.2, first=None, decay="cosine"
    )
    rounds = SeftRounds(
        rule, schedule, lambda layer: Window(DELTAS, "rms", watched=0), seed_age_offset=1
    )
    model = nn.ModuleList([layer])
    optimizer = SlotAdamW([layer.values], lr=0.05, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    for step in range(1, schedule.steps + 1):
        if schedule.observes(step) and layer.window is None:
            layer.window = rounds.make_window(layer)
        x = torch.randn(64, INPUTS, generator=generator)
        loss = F.mse_loss(layer(x), x @ teacher.T)
        optimizer.zero_grad()
        loss.backward()
        if layer.window is not None:
            layer.window.end_step(layer)
        optimizer.step()
        if schedule.due(step):
            rounds.update(model, optimizer, step)
            assert int(layer.keep.sum()) <= KEPT
    weight = layer.effective_weight().detach()
    found = int(((weight != 0) & (teacher != 0)).sum()) / KEPT
    return found, float(F.mse_loss(weight, teacher)), int(weight.count_nonzero())


def test_a_planted_support_is_found_and_a_fixed_mask_cannot_find_it() -> None:
    """A student with 80 of 128 positions right: 62.5 % of the support, whatever its values."""
    found, error, nonzeros = evolved("all")
    fixed, fixed_error, _ = evolved("active")
    print(f"found {found:.3f} error {error:.2e}; fixed {fixed:.3f} error {fixed_error:.2e}")
    assert fixed == (KEPT - WRONG) / KEPT
    assert found >= 0.98
    assert nonzeros <= KEPT
    assert error < fixed_error / 20


# whole fits

VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "scatter": ("method.kernel=scatter",),
    "sparse": ("method.kernel=sparse",),
    "auto": ("method.kernel=auto",),
    "active": ("method.grow_scope=active", "method.adapt=false"),
    "candidates": ("method.sensitivity_gradient=candidates", "method.adapt_scope=global"),
    "last": ("method.sensitivity_gradient=last", "method.adapt_candidates=base_only"),
    "magnitude": ("method.adapt_score=magnitude", "method.first_drop_rate=1.0"),
    "mean": ("method.sensitivity_gradient=mean", "method.drop_schedule=linear"),
    "refill": ("method.refill=true", "method.exclude_active_candidates=true"),
    "fold": ("method.fold_at_rounds=true",),
    "start anywhere": ("method.init_scope=all",),
    "start at gradients": ("method.init_scope=gradient", "method.seed_age_offset=0"),
    "sgd": ("method.optimizer=sgd", "method.learning_rate=0.1"),
}


@pytest.mark.parametrize("name", slow_but_for(VARIANTS, ["defaults", "candidates", "fold"]))
def test_every_variant_evolves_within_its_budget(name: str, tmp_path: Path) -> None:
    """Rounds after steps 2, 6, 10; supports checked before every step; zeros as promised."""
    model = pruned_model()
    before = {n: linear.keep.clone() for n, linear in sparse_linears(model)}
    method, watch = seft(*VARIANTS[name]), contracts.WatchSupports()
    method.attach(copy.deepcopy(model), bench_for(tmp_path))
    report = method.repair(model, bench_for(tmp_path, watch))
    assert watch.checked == 10
    rounds = report["evolution"]["rounds"]
    assert [one["step"] for one in rounds] == [2, 6, 10]
    assert sum(rounds[0]["moved"]) > 0
    assert report["trimmed"] == report["zeroed_by_fold"] == 0
    after = {n: linear.keep for n, linear in sparse_linears(model)}
    assert sum(int(k.sum()) for k in after.values()) <= sum(int(k.sum()) for k in before.values())
    if method.adapt_scope == "layer":
        assert all(int(after[n].sum()) <= int(before[n].sum()) for n in before)
    changed = any(not torch.equal(after[n], before[n]) for n in before)
    assert changed == (method.grow_scope == "all")
    assert all(type(linear) is SparseLinear for _, linear in sparse_linears(model))


def test_growth_without_pruning_ends_beyond_the_budget_and_says_by_how_much(tmp_path: Path) -> None:
    """The bound of the control: at most as many weights more as there are deltas."""
    model = pruned_model()
    budget = sum(int(linear.keep.sum()) for _, linear in sparse_linears(model))
    report = seft("method.adapt=false").repair(model, bench_for(tmp_path))
    kept = sum(int(linear.keep.sum()) for _, linear in sparse_linears(model))
    assert 0 < kept - budget <= report["trained_parameters"]
    assert report["beyond_budget"] == kept - budget
    assert not any(sum(one["pruned"]) for one in report["evolution"]["rounds"])


def test_rounds_measure_their_loss_and_change_nothing_by_it(tmp_path: Path) -> None:
    """The last round follows the last step: its loss is that of the model that is left."""
    plain, watched = pruned_model(), pruned_model()
    seft().repair(plain, bench_for(tmp_path / "plain"))
    method = seft("method.round_loss_windows=2", "method.keep_best=false")
    bench = bench_for(tmp_path / "watched")
    rounds = method.repair(watched, bench)["evolution"]["rounds"]
    contracts.assert_same_bits(bits(plain), bits(watched))
    assert [one["step"] for one in rounds] == [2, 6, 10]
    first = rounds[0]
    assert first["loss_moved"] != first["loss_settled"]  # weights were pruned
    examples = bench.validation.first(2)
    loss = next_token_loss(watched, examples.tokens, examples.labels)
    assert rounds[-1]["loss_settled"] == pytest.approx(float(loss), rel=1e-5)


def test_the_deltas_that_die_are_not_counted_as_trained(tmp_path: Path) -> None:
    """Their positions were pruned: they hold nothing at the end."""
    model, method = pruned_model(), seft()
    method.attach(model, bench_for(tmp_path))
    deltas = method.free_trainable(model)
    _, layer = next(delta_linears(model))
    assert isinstance(layer, SeftLinear)
    layer.prune_(layer.indices[:3].long())
    assert method.fold(model)["trained_parameters"] == deltas - 3


def resumed(make: Any, out: Path, step: int, micro_batch: int) -> tuple[Any, Any]:
    """(bits, rounds) of a fit that was killed after `step` steps and continued."""
    method = make()
    interrupt = InterruptBefore(step * method.windows_per_step // micro_batch)
    with pytest.raises(Interrupt):
        method.repair(pruned_model(), bench_for(out, interrupt, micro_batch=micro_batch))
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == step
    assert bool(saved["windows"]) == method.rounds.observes(step + 1)
    model, bench = pruned_model(), bench_for(out, micro_batch=micro_batch)
    object.__setattr__(bench, "resume_from", out / "checkpoints" / "last.ckpt")
    report = make().repair(model, bench)
    return bits(model), report["evolution"]["rounds"]


@pytest.mark.parametrize(
    "name",
    slow_but_for(
        ["defaults", "candidates", "last", "refill", "fold", "start at gradients"], ["defaults"]
    ),
)
def test_a_fit_killed_within_a_window_or_after_a_round_resumes_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    """Killed after 5 steps, one before the second round, and after 6, right behind it."""

    def make() -> Seft:
        return seft(*VARIANTS[name])

    model, micro_batch = pruned_model(), 1 if name in ("defaults", "last") else 2
    report = make().repair(model, bench_for(tmp_path / "whole", micro_batch=micro_batch))
    for step in (5, 6):
        again, rounds = resumed(make, tmp_path / str(step), step, micro_batch)
        contracts.assert_same_bits(bits(model), again)
        assert rounds == report["evolution"]["rounds"]


def test_a_resumed_fit_keeps_the_kernels_that_were_measured(tmp_path: Path) -> None:
    with pytest.raises(Interrupt):
        seft("method.kernel=auto").repair(pruned_model(), bench_for(tmp_path, InterruptBefore(3)))
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    (kernels,) = [c["kernels"] for c in checkpoint["callbacks"].values() if "kernels" in c]
    method, bench = seft("method.kernel=auto"), bench_for(tmp_path)
    object.__setattr__(bench, "resume_from", tmp_path / "checkpoints" / "last.ckpt")
    method.repair(pruned_model(), bench)
    assert method.evolution is not None
    assert method.evolution.kernels == kernels
    assert len(kernels) == len(dict(sparse_linears(pruned_model())))


class DenseGradients(Callback):
    """Bytes of weight-sized gradients that each step's backward showed to a window."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.alive: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step + 1
        self.bytes[step] = 0
        for _, layer in delta_linears(pl_module):
            assert layer.weight.grad is None
            layer._observe = self.counted(layer, step)  # type: ignore[method-assign]

    def counted(self, layer: DeltaLinear, step: int) -> Any:
        def observe(gradient: Tensor) -> None:
            self.bytes[step] += gradient.numel() * gradient.element_size()
            DeltaLinear._observe(layer, gradient)

        return observe


def test_only_the_steps_of_windows_form_dense_gradients(tmp_path: Path) -> None:
    """All weights' worth of bytes in each of them, none in the others."""
    count, model = DenseGradients(), pruned_model()
    weights = sum(linear.weight.numel() for _, linear in sparse_linears(model))
    seft().repair(model, bench_for(tmp_path, count))
    inside = {1, 2, 4, 5, 6, 8, 9, 10}
    assert count.bytes == {s: 4 * weights if s in inside else 0 for s in range(1, 11)}


def test_two_four_with_moves_inside_groups_changes_the_mask_and_keeps_the_pattern(
    tmp_path: Path,
) -> None:
    model = pruned_model("2:4")
    before = {n: linear.keep.clone() for n, linear in sparse_linears(model)}
    method = seft("method.pattern_growth=within_group")
    report = method.repair(model, bench_for(tmp_path, pattern="2:4"))
    assert sum(report["evolution"]["rounds"][0]["reactivated"]) > 0
    changed = 0
    for name, linear in sparse_linears(model):
        assert (linear.keep.reshape(linear.out_features, -1, 4).sum(dim=2) == 2).all()
        changed += int((linear.keep != before[name]).sum())
    assert changed > 0


def test_two_four_otherwise_keeps_its_mask_to_the_bit(tmp_path: Path) -> None:
    model = pruned_model("2:4")
    before = {n: linear.keep.clone() for n, linear in sparse_linears(model)}
    report = seft().repair(model, bench_for(tmp_path, pattern="2:4"))
    assert sum(report["evolution"]["rounds"][0]["moved"]) > 0
    contracts.assert_same_bits(before, {n: linear.keep for n, linear in sparse_linears(model)})


@pytest.mark.parametrize("family", slow_but_for(["opt", "gpt_neox", "gemma2"], ["opt"]))
def test_other_families_evolve_too(family: str, tmp_path: Path) -> None:
    assert family in FAMILIES
    model = pruned_model(family=family)
    report = seft().repair(model, bench_for(tmp_path))
    check_supports(model)
    assert sum(sum(one["reactivated"]) for one in report["evolution"]["rounds"]) > 0


def test_a_checkpoint_from_before_the_first_round_is_cut_to_the_budget(tmp_path: Path) -> None:
    """Deltas that start anywhere exceed it until then."""
    model = pruned_model()
    budget = {n: int(linear.keep.sum()) for n, linear in sparse_linears(model)}
    method = seft("method.init_scope=all")
    method.attach(model, bench_for(tmp_path))
    assert any(int(linear.keep.sum()) > budget[n] for n, linear in sparse_linears(model))
    report = method.fold(model)
    assert report["trimmed"] > 0
    assert {n: int(linear.keep.sum()) for n, linear in sparse_linears(model)} == budget


def test_the_budget_of_lora_is_that_of_its_factors(tmp_path: Path) -> None:
    """Up to one delta per linear, from rounding down."""
    lora, method = method_of("masked_lora", "method.rank=2"), seft()
    assert isinstance(lora, TrainedRepair)
    method.budget = {"match": "lora_rank", "density": 0.1, "deltas": None, "lora_rank": 2}
    method.__post_init__()
    trained = []
    for one in (lora, method):
        model = pruned_model()
        one.attach(model, bench_for(tmp_path))
        trained.append(one.free_trainable(model))
    linears = len(dict(sparse_linears(pruned_model())))
    assert trained[0] - linears <= trained[1] <= trained[0]


def test_a_delta_costs_no_more_than_twenty_four_bytes(tmp_path: Path) -> None:
    """Value, gradient, two moments, age, index, state: what is there after a step."""
    model, method = pruned_model(), seft()
    method.attach(model, bench_for(tmp_path))
    method.free_trainable(model)
    optimizer = method.make_optimizer(model)
    model(input_ids=contracts.windows(2), use_cache=False).logits.sum().backward()
    optimizer.step()
    _, layer = next(delta_linears(model))
    assert isinstance(layer, SeftLinear)
    assert layer.values.grad is not None
    own = [layer.values, layer.values.grad, layer.indices, layer.states]
    own += [v for v in optimizer.state[layer.values].values() if isinstance(v, Tensor)]
    assert len(own) == 7
    each = sum(t.numel() * t.element_size() for t in own) / layer.values.numel()
    print(f"{each:g} bytes per delta")
    assert each == 23


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.grow_scope=row",), r"method.grow_scope 'row' is not one of: active, all"),
        (("method.sensitivity_candidates=1",), r"sensitivity_candidates=1 is below 2"),
        (("method.refill=true", "method.sensitivity_gradient=last"), r"method.refill=true needs"),
        (("method.optimizer=muon",), r"method.optimizer 'muon' is not one of: adamw, sgd"),
        (("method.precision=16-mixed",), r"method.precision '16-mixed' is not one of"),
        (("method.kernel=csr",), r"method.kernel 'csr' is not one of"),
        (("method.betas=[0.9,0.9999]",), r"beta 0.9999 is not in \[0, 0.99947\]"),
        (("method.betas=[0.9,1.0]",), r"1.0 is not in \[0, 1\)"),
        (("method.betas=[0.9]",), r"method.betas=\[0.9\] are not two numbers"),
        (("method.seed_age_offset=2",), r"method.seed_age_offset=2 is not 0 or 1"),
    ],
)
def test_what_cannot_work_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_of("seft", *overrides)


def test_more_deltas_than_kept_weights_are_refused_by_name(tmp_path: Path) -> None:
    method = seft()
    method.budget = {"match": "density", "density": 0.9, "deltas": None, "lora_rank": 2}
    method.__post_init__()
    message = r"q_proj would get \d+ deltas but keeps 512 weights .*lower method.budget.density"
    with pytest.raises(ValueError, match=message):
        method.repair(pruned_model(), bench_for(tmp_path))


def test_more_deltas_than_an_existing_support_keeps_are_refused_with_the_model_alone() -> None:
    model, method = random_model("llama"), seft()
    supports = {n: torch.ones_like(m.weight) > 0 for n, m in prunable_linears(model).items()}
    method.check_model(model, supports)
    method.check_model(model, None)
    supports["model.layers.1.mlp.up_proj"][:] = False
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.up_proj would get \d+ deltas but keeps 0"
    ):
        method.check_model(model, supports)

"""LoSA as a whole: what each round asks and reaches, what moves unseen, what a kill leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support.configs import compose
from support.contracts import (
    Interrupt,
    InterruptBefore,
    assert_same_bits,
    bench_for,
    bits,
    method_of,
    pruned_model,
)
from support.families import random_model
from support.tiers import slow_but_for
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.method.base import Workbench
from sparsemend.method.losa import rounds as losa_rounds
from sparsemend.method.losa.losa import Losa
from sparsemend.method.losa.plan import cubic_ramp
from sparsemend.method.losa.progress import losa_linears, resize_moments
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.linear import check_supports, sparse_linears

WANDA = Wanda(variant=False)
SPARSEGPT = SparseGPT(block_size=128, damping=0.01)


def losa(**changes: Any) -> Losa:
    return Losa(**{**vars(method_of("losa")), **changes})


def repaired(
    method: Losa, bench: Workbench, family: str = "llama"
) -> tuple[PreTrainedModel, dict[str, Any]]:
    model = pruned_model(family=family)
    return model, method.repair(model, bench)


class Watch(Callback):
    """Effective weights, supports and moments as each fit finds and leaves them; what it reads."""

    def __init__(self) -> None:
        self.found: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.left: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.moments: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.read: list[list[list[int]]] = []
        self.logged: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found.append(weights(pl_module))
        self.moments.append((moments(trainer, pl_module), {}))
        self.read.append([])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        self.read[-1].append(batch[0][:, 0].tolist())
        self.logged.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.left.append(weights(pl_module))
        self.moments[-1][1].update(moments(trainer, pl_module))


def weights(module: LightningModule) -> dict[str, tuple[Tensor, Tensor]]:
    with torch.no_grad():
        linears = losa_linears(module).items()
        return {name: (m.effective_weight().clone(), m.keep) for name, m in linears}


def moments(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    state = trainer.optimizers[0].state
    return {
        name: {key: value.clone() for key, value in state[p].items()}
        for name, p in module.named_parameters()
        if p in state
    }


@pytest.mark.parametrize(
    "pruner", [WANDA, SPARSEGPT, Magnitude(group="row"), Magnitude(group="layer")]
)
def test_every_round_asks_for_its_target_and_the_pruner_rounds_the_rates(
    pruner: Pruner, tmp_path: Path
) -> None:
    bench = replace(bench_for(tmp_path), pruner=pruner)
    model, report = repaired(losa(rounds=3, delta=0.06), bench)
    assert [r["target"] for r in report["rounds"]] == pytest.approx(cubic_ramp(0.5, 3), abs=1e-9)
    assert report["asked"].mean == pytest.approx(0.5, abs=1e-9)
    assert len(set(report["asked"].values())) > 1
    per_row = pruner == WANDA or pruner == Magnitude(group="row")
    for name, linear in sparse_linears(model):
        zeros, (rows, columns) = int((~linear.keep).sum()), linear.weight.shape
        rate = report["asked"][name]
        assert zeros == (rows * int(columns * rate) if per_row else int(rows * columns * rate) + 1)


def test_above_the_last_limit_the_band_of_the_round_before_is_kept(tmp_path: Path) -> None:
    bench = replace(bench_for(tmp_path), sparsity=0.8)
    _, report = repaired(losa(rounds=2, targets=[0.4, 0.8], measure_trained=False), bench)
    assert [record["delta"] for record in report["rounds"]] == [0.01, 0.01]


@pytest.mark.parametrize(
    "pruner", slow_but_for([WANDA, SPARSEGPT, Magnitude(group="layer")], [WANDA])
)
def test_an_exact_budget_is_met_to_one_weight(pruner: Pruner, tmp_path: Path) -> None:
    bench = replace(bench_for(tmp_path), pruner=pruner, rounding="exact_budget", sparsity=0.477)
    model, report = repaired(losa(rounds=3, delta=0.06), bench)
    keeps = [linear.keep for _, linear in sparse_linears(model)]
    zeros, total = sum(int((~k).sum()) for k in keeps), sum(k.numel() for k in keeps)
    assert zeros == round(0.477 * total)
    assert report["asked"].mean == pytest.approx(0.477, abs=0.5 / total + 1e-9)


def test_supports_and_ranks_move_under_the_function(tmp_path: Path) -> None:
    """What training finds is what the round before left, pruned: no jump from moving factors."""
    watch = Watch()
    method = losa(rounds=3, mean_rank=4.0, rank_growth=2.0, learning_rate=3e-2)
    _, report = repaired(method, bench_for(tmp_path, watch))
    moved = 0
    for before, after in zip(watch.left, watch.found[1:], strict=False):
        for name, (weight, keep) in after.items():
            torch.testing.assert_close(weight, before[name][0] * keep, atol=1e-5, rtol=0)
            moved += int((keep != before[name][1]).sum())
    assert moved > 1000
    ranks = [[block["rank"] for block in record["blocks"]] for record in report["rounds"]]
    assert [sum(r) for r in ranks] == [12, 18, 24]
    assert max(b - a for r, s in pairwise(ranks) for a, b in zip(r, s, strict=True)) > 0


def test_a_round_is_reported_by_block(tmp_path: Path) -> None:
    _, report = repaired(losa(rounds=2), bench_for(tmp_path))
    assert [r["steps"] for r in report["rounds"]] == [1, 2]
    assert report["steps"] == 3
    assert report["overhead"] == pytest.approx(
        (report["seconds"]["allocate"] + report["seconds"]["prune"]) / report["seconds"]["train"]
    )
    taken = sum(record["seconds"]["step"] * record["steps"] for record in report["rounds"])
    assert report["step_seconds"] == pytest.approx(taken / report["steps"])
    assert taken < report["seconds"]["train"]
    first, second = (record["blocks"] for record in report["rounds"])
    assert len(first) == 3
    for block in (*first, *second):
        assert 0 < block["error_pruned"] < 2
        assert 0 < block["error_trained"] < 2
        assert block["regrown"] == 0  # Wanda's supports are nested
        assert block["active_rank"] == block["rank"]
    for one, other in zip(first, second, strict=True):
        assert one["mask_overlap"] == pytest.approx(1 - one["achieved"])
        kept = (1 - other["achieved"]) / (1 - one["achieved"])
        assert other["mask_overlap"] == pytest.approx(kept)


def test_sparsegpt_regrows_weights_that_compensation_brought_back(tmp_path: Path) -> None:
    bench = replace(bench_for(tmp_path), pruner=SparseGPT(block_size=8, damping=0.01))
    _, report = repaired(losa(rounds=3), bench)
    assert sum(block["regrown"] for r in report["rounds"] for block in r["blocks"]) > 0


def flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most important block becomes the least important one in every other round."""
    orders = iter([[0.1, 0.5, 0.9], [0.9, 0.5, 0.1]] * 3)
    monkeypatch.setattr(losa_rounds, "importance", lambda similarity, beta: next(orders))


def zeros_of(model: PreTrainedModel) -> float:
    keeps = [linear.keep for _, linear in sparse_linears(model)]
    return sum(int((~k).sum()) for k in keeps) / sum(k.numel() for k in keeps)


def test_over_sparsity_is_bounded_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flipped(monkeypatch)
    model, report = repaired(losa(rounds=3, delta=0.15), bench_for(tmp_path))
    for one, other in pairwise(report["rounds"]):
        for block, later in zip(one["blocks"], other["blocks"], strict=True):
            assert later["rate"] >= block["rate"]
            assert later["regrown"] == 0
    assert report["asked"].mean == pytest.approx(0.5, abs=1e-9)
    for name, linear in sparse_linears(model):
        rows, columns = linear.weight.shape
        assert int((~linear.keep).sum()) == rows * int(columns * report["asked"][name])


def test_over_sparsity_is_the_released_overshoot_when_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Supports are nested, so a block stays at the most it was ever asked for."""
    flipped(monkeypatch)
    method = losa(rounds=3, delta=0.15, oversparsity="ignore")
    model, report = repaired(method, bench_for(tmp_path))
    assert report["asked"].mean == pytest.approx(0.5, abs=1e-9)
    most = [max(r["blocks"][i]["rate"] for r in report["rounds"]) for i in range(3)]
    assert sum(most) / 3 > 0.58
    # of each row less than one weight of 32 or 48 is left of the rate
    assert sum(most) / 3 - 1 / 32 <= zeros_of(model) <= sum(most) / 3
    assert report["rounds"][-1]["achieved"] == zeros_of(model)


def test_carried_moments_follow_the_factors(tmp_path: Path) -> None:
    watch = Watch()
    method = losa(rounds=2, optimizer_state="carried", mean_rank=3.0, rank_growth=4.0)
    repaired(method, bench_for(tmp_path, watch))
    (_, left), (found, _) = watch.moments
    assert found.keys() == left.keys()
    grown = 0
    for name, state in found.items():
        dim = 0 if name.endswith("lora_a") else 1
        for key in ("exp_avg", "exp_avg_sq"):
            old, new = left[name][key], state[key]
            both = min(old.shape[dim], new.shape[dim])
            assert torch.equal(new.narrow(dim, 0, both), old.narrow(dim, 0, both))
            assert not new.narrow(dim, both, new.shape[dim] - both).any()
            grown += new.shape[dim] > old.shape[dim]
        ages, before = state["step"].flatten(), left[name]["step"].flatten()
        both = min(len(ages), len(before))
        assert torch.equal(ages[:both], before[:both])
        assert ages[:both].all()
        assert not ages[both:].any()
    assert grown


def test_a_fresh_optimizer_knows_nothing_of_the_round_before(tmp_path: Path) -> None:
    watch = Watch()
    repaired(losa(rounds=2), bench_for(tmp_path, watch))
    assert watch.moments[1][0] == {}
    assert watch.moments[0][1] != {}


def test_the_rounds_read_what_one_long_fit_would(tmp_path: Path) -> None:
    watch, single = Watch(), Watch()
    repaired(losa(rounds=3, max_steps=6), bench_for(tmp_path / "losa", watch))
    method = method_of("masked_lora")
    method.max_steps = 6  # type: ignore[attr-defined]
    method.repair(pruned_model(), bench_for(tmp_path / "one", single))
    assert [len(part) for part in watch.read] == [2, 2, 2]
    assert list(chain(*watch.read)) == single.read[0]
    assert watch.logged == single.logged  # one curve, not three on top of each other


def test_a_round_reads_its_slice_of_the_data(tmp_path: Path) -> None:
    watch = Watch()
    bench = bench_for(tmp_path, watch)
    slices = [[0, 4], [2, 8]]
    repaired(losa(rounds=2, max_steps=8, data_slices=slices), bench)
    for (first, end), part in zip(slices, watch.read, strict=True):
        rows = bench.train.tokens[first:end, 0].tolist()
        assert set(chain(*part)) == set(rows)


def test_slices_beyond_the_data_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    method = losa(rounds=2, data_slices=[[0, 4], [4, 13]])
    with pytest.raises(ValueError, match="round 2 reads up to row 13, but there are 12 training"):
        method.check_train(bench_for(tmp_path).train)


def test_a_target_below_the_zeros_of_the_dense_model_is_refused(tmp_path: Path) -> None:
    def half_zero() -> PreTrainedModel:
        model = random_model("llama")
        for linear in prunable_linears(model).values():
            linear.weight.data[:, ::2] = 0
        return model

    bench = replace(bench_for(tmp_path), load_dense=half_zero, sparsity=0.3)
    with pytest.raises(ValueError, match=r"below what the blocks have reached already \(0\.50"):
        repaired(losa(), bench)


def test_a_pattern_is_refused_unless_it_is_fixed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.fixed_pattern=true for it in every round"):
        repaired(losa(), bench_for(tmp_path, pattern="2:4"))


def test_a_fixed_pattern_holds_in_every_round_and_its_support_moves(tmp_path: Path) -> None:
    watch = Watch()
    bench = replace(bench_for(tmp_path, watch, pattern="2:4"), pruner=SPARSEGPT)
    _, report = repaired(losa(rounds=3, fixed_pattern=True, learning_rate=0.1), bench)
    for part in (*watch.found, *watch.left):
        for _, keep in part.values():
            assert torch.all(keep.view(keep.shape[0], -1, 4).sum(dim=2) == 2)
    assert [block["rate"] for r in report["rounds"] for block in r["blocks"]] == [0.5] * 9
    assert report["rounds"][-1]["achieved"] == 0.5


@pytest.mark.parametrize("family", slow_but_for(["opt", "gpt_neox", "gemma2"], ["opt"]))
def test_other_families(family: str, tmp_path: Path) -> None:
    model, report = repaired(losa(), bench_for(tmp_path, family=family), family)
    check_supports(model)
    assert report["rounds"][-1]["achieved"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("precision", slow_but_for(["bf16-true", "bf16-mixed"], ["bf16-true"]))
def test_a_bf16_model_keeps_its_dtypes_through_the_rounds(precision: str, tmp_path: Path) -> None:
    watch, model = Watch(), pruned_model().bfloat16()
    method = losa(rounds=3, precision=precision, mean_rank=3.0, rank_growth=3.0)
    report = method.repair(model, bench_for(tmp_path, watch))
    check_supports(model)
    dtypes = {
        value.dtype
        for _, state in watch.moments
        for value in state["model.model.layers.0.self_attn.q_proj.lora_a"].values()
        if value.ndim
    }
    assert dtypes == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    # the function moves by roundings of bf16 alone when supports and ranks do
    for before, after in pairwise(zip(watch.found, watch.left, strict=True)):
        for name, (weight, keep) in after[0].items():
            wanted = before[1][name][0] * keep
            torch.testing.assert_close(weight, wanted, rtol=2**-6, atol=2**-6)
    assert report["zeroed_by_fold"] >= 0


def test_every_round_may_learn_from_the_dense_model(tmp_path: Path) -> None:
    """From one teacher: the dense model is loaded for it, and for the errors, once each."""
    distill = {**losa().distill, "weight": 0.5, "hidden_weight": 1.0}
    loaded = []

    def load_dense() -> PreTrainedModel:
        loaded.append(random_model("llama"))
        return loaded[-1]

    _, report = repaired(losa(distill=distill), replace(bench_for(tmp_path), load_dense=load_dense))
    assert [record["teacher"]["dtype"] for record in report["rounds"]] == ["float32"] * 2
    assert len(loaded) == 2


def attempt(method: Losa, bench: Workbench) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    model = pruned_model()
    try:
        return model, method.repair(model, bench)
    except Interrupt:
        return model, None


def without_seconds(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in report["rounds"]]


@pytest.mark.parametrize(
    ("pruner", "checkpoint_every"), slow_but_for([(SPARSEGPT, 1), (WANDA, 100)], [(WANDA, 100)])
)
def test_a_repair_stopped_anywhere_goes_on_to_the_same_bits(
    pruner: Pruner, checkpoint_every: int, tmp_path: Path
) -> None:
    """Stopped before every optimizer step in turn, the fifth in the middle of round 3."""
    method = losa(
        rounds=3,
        max_steps=6,
        optimizer_state="carried",
        checkpoint_every=checkpoint_every,
        mean_rank=3.0,
    )
    whole, report = attempt(method, replace(bench_for(tmp_path / "whole"), pruner=pruner))
    assert report is not None
    out, model, again = tmp_path / "broken", whole, None
    last = out / "checkpoints" / "last.ckpt"
    stops = [InterruptBefore(n) for n in (1, 2, 2, 1)]
    for stop in (*stops, None):
        bench = bench_for(out, *([stop] if stop else []))
        resume_from = last if last.exists() else None
        model, again = attempt(method, replace(bench, pruner=pruner, resume_from=resume_from))
    assert again is not None
    assert_same_bits(bits(whole), bits(model))
    assert without_seconds(again) == without_seconds(report)


class InterruptAtEnd(Callback):
    """Ends a repair when a fit has taken its last step and written its checkpoint."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise Interrupt


@pytest.mark.parametrize("state", slow_but_for(["carried", "fresh"], ["carried"]))
def test_a_repair_stopped_between_a_fit_and_the_rounds_file_goes_on_to_the_same_bits(
    state: str, tmp_path: Path
) -> None:
    method = losa(rounds=2, max_steps=4, optimizer_state=state, mean_rank=3.0)
    whole, report = attempt(method, bench_for(tmp_path / "whole"))
    assert report is not None
    out = tmp_path / "broken"
    assert attempt(method, bench_for(out, InterruptAtEnd()))[1] is None
    resumed = replace(bench_for(out), resume_from=out / "checkpoints" / "last.ckpt")
    model, again = attempt(method, resumed)
    assert again is not None
    assert_same_bits(bits(whole), bits(model))
    assert without_seconds(again) == without_seconds(report)


def test_a_round_file_leaves_out_bases_that_follow_from_the_dense_model(tmp_path: Path) -> None:
    def stored(bench: Workbench) -> list[bool]:
        repaired(losa(rounds=1), bench)
        content = torch.load(bench.parts / "rounds.pt", weights_only=True)
        return [state["weight"] is not None for state in content["linears"].values()]

    assert not any(stored(bench_for(tmp_path / "wanda")))
    assert any(stored(replace(bench_for(tmp_path / "sparsegpt"), pruner=SPARSEGPT)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, r"method\.rounds 0 is below 1"),
        ({"mean_rank": 0.5}, r"mean rank 0\.5 of round 1 is below method\.min_rank=1"),
        ({"rank_cap": 0}, r"method\.rank_cap 0 is below 1"),
        ({"rank_cap": 17}, r"method\.rank_cap 17 is above method\.max_rank=16"),
        ({"beta": -1.0}, r"method\.beta -1\.0 is below 0"),
        ({"fixed_pattern": True, "targets": [0.5] * 5}, r"set method\.targets=null"),
        ({"solver": "simplex"}, "'simplex' is not one of: lp, slsqp"),
        ({"oversparsity": "maybe"}, "is not one of: bound, ignore"),
        ({"similarity_samples": 2}, r"method\.similarity_samples 2 is below 3"),
        ({"scale": 0.0}, r"method\.scale 0\.0 is not above 0"),
        ({"optimizer_state": "carried", "optimizer": "muon"}, "resizes AdamW's moments, not those"),
        ({"dropout": 1.0}, r"method\.dropout 1\.0 is not in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        losa(**changes)


def test_a_rank_that_no_linear_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_rank=17 exceeds min\(inputs, outputs\) = 16"):
        losa(max_rank=17).check_model(random_model("llama"), None)


def released(*overrides: str) -> Any:
    return compose("run", ["experiment=losa_released", *overrides])


def test_the_released_preset_is_the_released_behaviour() -> None:
    cfg = released()
    method = cfg.method
    assert method.rank_cap == 8
    assert [method.solver, method.oversparsity] == ["slsqp", "ignore"]
    assert method.rank_repair == "single_pass"
    assert sum(method.round_steps) == method.max_steps == 1250
    assert list(method.data_slices[4]) == [4000, 10000]
    assert method.windows_per_step == 8
    # every row is read once: 125 steps of 8 are 1000 rows, 750 are 6000
    for steps, (first, end) in zip(method.round_steps, method.data_slices, strict=True):
        assert steps * 8 == end - first


@pytest.mark.slow  # as its parts do above
def test_the_released_preset_repairs(tmp_path: Path) -> None:
    """With fewer rows and steps than it names."""
    method = dict(released().method)
    method.pop("_target_")
    small: dict[str, Any] = {
        "max_steps": 5,
        "round_steps": None,
        "data_slices": [[0, 2], [2, 4], [4, 6], [6, 8], [8, 12]],
        "similarity_samples": 4,
        "precision": "32-true",
    }
    model, report = repaired(Losa(**{**method, **small}), bench_for(tmp_path))
    check_supports(model)
    assert max(block["active_rank"] for block in report["rounds"][-1]["blocks"]) <= 8
    ranks: Sequence[int] = [block["rank"] for block in report["rounds"][-1]["blocks"]]
    assert max(ranks) > 8


def test_hidden_components_of_a_capped_factor_come_back_without_moments_or_age() -> None:
    model = pruned_model()
    losa(rank_cap=4).attach(model, bench_for(Path()))
    used = dict.fromkeys(losa_linears(model), 2)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, linear in losa_linears(model).items():
        linear.set_rank_(3, None)  # of the four that it has
        a, b = linear.lora_a, linear.lora_b
        moments[f"model.{name}.lora_a"] = {"exp_avg": torch.ones_like(a), "step": torch.ones(4, 1)}
        moments[f"model.{name}.lora_b"] = {"exp_avg": torch.ones_like(b), "step": torch.ones(1, 4)}
    for name, state in resize_moments(moments, model, used).items():
        by_component = [value if name.endswith("a") else value.T for value in state.values()]
        assert [value.amin(dim=1).tolist() for value in by_component] == [[1, 1, 0, 0]] * 2

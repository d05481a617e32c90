from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import compose
from support.contracts import bench_for, method_of
from support.families import random_model
from support.unusual import unusual_model, with_experts
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend import api
from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.self_check import check_walk
from sparsemend.blocks.walk import Calibration
from sparsemend.run.adopt import adopt, attach_supports, attach_whole
from sparsemend.run.export import to_dense_
from sparsemend.run.job import build
from sparsemend.run.prune import PruningRules
from sparsemend.sparse.linear import check_supports, sparse_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.stays_dense import CALLED, LISTED, REACHED, stays_dense

UNCHOSEN = "model.layers.1.mlp.experts.2"


def weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    linears = prunable_linears(model)
    return {name: linears[name].weight.detach().clone() for name in names}


def part(group: str, *overrides: str) -> Any:
    return build(compose("run", [*overrides])[group])


def pruned(
    model: PreTrainedModel, windows: Tensor, *overrides: str, sparsity: float = 0.5
) -> Mapping[str, float]:
    """Prune as the command does; returns the rates that were asked for."""
    check_walk(model, windows[:1])
    rules = PruningRules(
        pruner=part("pruner", *overrides),
        schedule=part("sparsity_schedule", *overrides),
        sparsity=sparsity,
        pattern=Pattern.parse("unstructured"),
        rounding=compose("run", [*overrides]).rounding,
        statistics=compose("run", [*overrides]).statistics,
        true_sequential=compose("run", [*overrides]).true_sequential,
    )
    return rules(model, Calibration((windows,)))


@pytest.mark.parametrize(
    "setting", ["statistics=exact", "statistics=dense", "pruner=sparsegpt", "true_sequential=true"]
)
def test_an_expert_that_no_token_chose_stays_dense(setting: str, tokens: Tensor) -> None:
    model = with_experts(random_model("llama"))
    before = weights(model, [UNCHOSEN])
    pruned(model, tokens, setting)
    assert stays_dense(model, REACHED) == {UNCHOSEN: REACHED}
    assert torch.equal(model.get_submodule(UNCHOSEN).weight, before[UNCHOSEN])
    pruned(model, tokens, setting)  # once more, as some methods do
    assert stays_dense(model, REACHED) == {UNCHOSEN: REACHED}


EXACT = "rounding=exact_budget"


@pytest.mark.parametrize(
    "setting", ["statistics=exact", "statistics=dense", "true_sequential=true"]
)
def test_an_exact_budget_is_met_by_the_others_of_a_block(setting: str, tokens: Tensor) -> None:
    model = with_experts(random_model("llama"))
    rates = pruned(model, tokens, EXACT, setting)
    linears = prunable_linears(model)
    lost = {name: int((linear.weight == 0).sum()) for name, linear in linears.items()}
    total = sum(linear.weight.numel() for linear in linears.values())
    assert stays_dense(model, REACHED) == {UNCHOSEN: REACHED}
    assert sum(lost.values()) == round(0.5 * total)
    assert {name: rate * linears[name].weight.numel() for name, rate in rates.items()} == lost
    assert rates[UNCHOSEN] == 0
    for name, rate in rates.items():
        took = name.startswith("model.layers.1.") and name != UNCHOSEN
        assert name == UNCHOSEN or rate == 0.5 or (took and rate > 0.5)


@pytest.mark.parametrize("pruner", ["magnitude", "wanda"])
def test_an_exact_budget_is_met_beside_linears_that_are_never_called(
    pruner: str, tokens: Tensor
) -> None:
    model = unusual_model("mamba")
    pruned(model, tokens, f"pruner={pruner}", EXACT, sparsity=0.6)
    linears = prunable_linears(model).values()
    total = sum(linear.weight.numel() for linear in linears)
    assert sum(int((m.weight == 0).sum()) for m in linears) == round(0.6 * total)


def test_an_exact_budget_that_dense_linears_leave_no_room_for_is_refused(tokens: Tensor) -> None:
    model = unusual_model("mamba")
    with pytest.raises(ValueError, match=r"cannot be met: .* at most 0\.\d+ of .* set spars"):
        pruned(model, tokens, "pruner=magnitude", EXACT, sparsity=0.999)


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_a_linear_that_is_handed_zeros_alone_stays_dense(pruner: str, tokens: Tensor) -> None:
    model, name = random_model("llama"), "model.layers.0.mlp.down_proj"
    nn.init.zeros_(model.get_submodule("model.layers.0.mlp.up_proj").weight)
    before = weights(model, [name])
    pruned(model, tokens, f"pruner={pruner}")
    assert stays_dense(model, REACHED) == {name: REACHED}
    assert torch.equal(model.get_submodule(name).weight, before[name])


def test_what_stays_dense_is_named_and_counts_as_prunable(
    tokens: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = api.prune(model := with_experts(random_model("llama")), tokens, sparsity=0.5)
    assert outcome.stays_dense == {UNCHOSEN: REACHED}
    assert f"1 linears stay dense, which the sparsity achieved counts: {UNCHOSEN}" in caplog.text
    report = api.check(model)
    assert report.per_linear[UNCHOSEN].zeros == 0
    weighed = report.total.weights
    assert report.of_prunable == pytest.approx(0.5 * (1 - 32 * 32 / weighed), abs=0.002)


def test_magnitude_prunes_an_expert_that_no_token_chose(tokens: Tensor) -> None:
    model = with_experts(random_model("llama"))
    pruned(model, tokens, "pruner=magnitude")
    assert not stays_dense(model, REACHED)


@pytest.mark.parametrize("pruner", ["magnitude", "wanda"])
def test_a_linear_that_is_never_called_stays_dense_whatever_the_pruner(
    pruner: str, tokens: Tensor
) -> None:
    model = unusual_model("mamba")
    names = [f"backbone.layers.{i}.mixer.dt_proj" for i in range(3)]
    before = weights(model, names)
    pruned(model, tokens, f"pruner={pruner}")
    assert stays_dense(model, REACHED) == dict.fromkeys(names, CALLED)
    assert all(torch.equal(before[n], w) for n, w in weights(model, names).items())


@pytest.mark.parametrize("granularity", ["block", "linear"])
@pytest.mark.parametrize("schedule", ["owl", "dlp", "global"])
def test_schedules_that_read_activations_pass_over_what_no_token_reaches(
    schedule: str, granularity: str, tokens: Tensor
) -> None:
    model = with_experts(random_model("llama"))
    chosen = [f"sparsity_schedule={schedule}", f"sparsity_schedule.granularity={granularity}"]
    if schedule == "global":
        chosen.append("sparsity_schedule.score=wanda")
    asked = pruned(model, tokens, *chosen)
    assert all(0 < rate < 1 for rate in asked.values())
    if (schedule, granularity) == ("global", "linear"):
        assert asked[UNCHOSEN] == 0.5


def test_the_zeros_of_a_linear_that_is_never_called_are_kept_as_they_came(tokens: Tensor) -> None:
    model = unusual_model("mamba")
    check_walk(model, tokens[:1])
    name = "backbone.layers.1.mixer.dt_proj"
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            linear.weight[::2] = 0
    before = weights(model, [name])
    rates = adopt(model, None)
    assert rates[name] == 0.5
    assert name in stays_dense(model, REACHED)
    assert torch.equal(model.get_submodule(name).weight, before[name])


def test_supports_may_leave_out_a_linear_that_is_dense(tokens: Tensor) -> None:
    model = with_experts(random_model("llama"))
    pruned(model, tokens)
    supports = {name: linear.keep for name, linear in sparse_linears(model)}
    again = to_dense_(copy.deepcopy(model))
    attach_supports(again, supports)
    assert stays_dense(again, LISTED) == {UNCHOSEN: LISTED}
    del supports["model.layers.1.mlp.experts.0"]
    with pytest.raises(ValueError, match=r"differ in their linears, first in .*experts\.0"):
        adopt(to_dense_(copy.deepcopy(model)), supports)


@pytest.mark.parametrize(
    "name",
    [
        "dsnot",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("lors", "lora", "spiel", "seft", "spp")
        ),
    ],
)
def test_no_method_touches_what_stays_dense(name: str, tokens: Tensor, tmp_path: Path) -> None:
    model = with_experts(random_model("llama"))
    asked = pruned(model, tokens)
    before = weights(model, [UNCHOSEN])
    bench = replace(
        bench_for(tmp_path),
        allocation=asked,
        load_dense=lambda: with_experts(random_model("llama")),
    )
    method_of(name).repair(model, bench)
    linear = model.get_submodule(UNCHOSEN)
    assert type(linear) is nn.Linear
    assert torch.equal(linear.weight, before[UNCHOSEN])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("seft", "method.init_scope=gradient"),
        ("seft", "method.sensitivity_gradient=last"),
        ("spiel", "method.selection=gradient"),
        ("spiel", "method.selection=moments"),
        ("spiel", "method.prune_back=pruner"),
        ("masked_full", "method.mask_update=rigl"),
        ("masked_full", "method.mask_update=rigl_momentum"),
        ("lors", "method.init=grad_svd"),
        ("losa", "method.rounds=2"),
    ],
)
def test_a_pruned_expert_that_no_training_token_chooses_keeps_its_zeros(
    name: str, setting: str, tokens: Tensor, tmp_path: Path
) -> None:
    """Magnitude prunes it; no method gets a gradient or a statistic of it."""
    model = with_experts(random_model("llama"))
    asked = pruned(model, tokens, "pruner=magnitude")
    before = model.get_submodule(UNCHOSEN).weight.count_nonzero()
    bench = replace(
        bench_for(tmp_path),
        allocation=asked,
        load_dense=lambda: with_experts(random_model("llama")),
    )
    method_of(name, setting).repair(model, bench)
    after = prunable_linears(model)[UNCHOSEN].weight.count_nonzero()
    assert after <= before + 8  # of 1024; losa rounds twice
    check_supports(model)


def test_an_expert_that_no_token_ever_chose_is_pruned_by_magnitude_in_rounds_from_dense(
    tokens: Tensor, tmp_path: Path
) -> None:
    model = with_experts(random_model("llama"))
    check_walk(model, tokens[:1])
    before = weights(model, [UNCHOSEN])[UNCHOSEN]
    bench = replace(
        bench_for(tmp_path),
        allocation=attach_whole(model),
        load_dense=lambda: with_experts(random_model("llama")),
    )
    method_of("losa", "method.rounds=2").repair(model, bench)
    after = prunable_linears(model)[UNCHOSEN].weight
    kept = after != 0
    assert 0 < kept.sum() < kept.numel()
    assert before[kept].abs().min() >= before[~kept].abs().max()
    check_supports(model)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["falcon", "olmo"])
@pytest.mark.parametrize("name", ["lors", "seft", "spiel", "losa"])
def test_outputs_of_adapters_may_be_changed_in_place(
    name: str, family: str, tokens: Tensor, tmp_path: Path
) -> None:
    model = unusual_model(family)
    asked = pruned(model, tokens)
    bench = replace(bench_for(tmp_path), allocation=asked, load_dense=lambda: unusual_model(family))
    method_of(name).repair(model, bench)
    check_supports(model)

"""`true_sequential`: every group of linears sees those before it pruned, by a slow oracle."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracles import pruner_oracle, statistics_oracle
from oracles.true_sequential_oracle import Rule, prune_in_order
from support.configs import compose
from support.contracts import assert_same_bits
from support.families import random_model
from torch import Tensor, nn

from sparsemend import api
from sparsemend.blocks.choice import choose_
from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.config.prunable import PrunableNames
from sparsemend.method.adapter.block_errors import ModelPair, prune_and_compare
from sparsemend.preflight import check as preflight
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.memory import Memory
from sparsemend.run.prune import PruningRules
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

ATTENTION = [f"self_attn.{name}_proj" for name in "qkv"]
OUTPUT = ["self_attn.o_proj"]
GROUPS = {
    "llama": [
        ATTENTION,
        OUTPUT,
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ],
    "opt": [ATTENTION, ["self_attn.out_proj"], ["fc1"], ["fc2"]],
}
WANDA, SPARSEGPT = Wanda(variant=False), SparseGPT(block_size=8, damping=0.01)


def wanda_rule(weight: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    keep = pruner_oracle.wanda(weight, statistics_oracle.wanda_scaler_row(inputs), 0.6)
    return weight * keep, keep


def rule_of(pruner: Pruner, weight: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The pruner's own arithmetic: what is independent here is the order of the passes."""
    statistic = pruner.statistic(weight.shape[1], weight.device)
    assert statistic is not None
    for tokens in inputs:
        statistic.update(tokens)
    result = pruner(weight, statistic, 0.6, Pattern())
    return result.weight, result.keep


def pruned_by(pruner: Pruner, family: str, tokens: Tensor, *, ordered: bool) -> nn.Module:
    model = random_model(family)
    rates = dict.fromkeys(prunable_linears(model), 0.6)
    prune(model, Calibration((tokens,)), pruner, rates, Pattern(), true_sequential=ordered)
    return model


@pytest.mark.parametrize("family", GROUPS)
@pytest.mark.parametrize(
    ("pruner", "rule"), [(WANDA, wanda_rule), (SPARSEGPT, partial(rule_of, SPARSEGPT))]
)
def test_masks_and_weights_are_those_of_full_forwards_group_by_group(
    family: str, pruner: Pruner, rule: Rule, tokens: Tensor
) -> None:
    slow, fast = random_model(family), pruned_by(pruner, family, tokens, ordered=True)
    prefix, blocks = find_blocks(slow)
    keeps = prune_in_order(slow, list(blocks), GROUPS[family], tokens, rule)
    for name, linear in sparse_linears(fast):
        block, inside = name.removeprefix(f"{prefix}.").split(".", 1)
        assert torch.equal(linear.keep, keeps[int(block)][inside]), name
        assert torch.equal(linear.weight, slow.get_submodule(name).weight), name
    plain = pruned_by(pruner, family, tokens, ordered=False)
    same = {
        name: torch.equal(linear.keep, plain.get_submodule(name).keep)
        for name, linear in sparse_linears(fast)
    }
    assert all(same[f"{prefix}.0.{name}"] for name in GROUPS[family][0])
    assert not all(same.values())


@pytest.mark.parametrize("memory", [False, True])
def test_the_rules_of_a_run_hand_the_order_on(memory: bool, tokens: Tensor) -> None:
    rules = PruningRules(
        pruner=WANDA,
        schedule=Uniform(),
        sparsity=0.6,
        pattern=Pattern(),
        rounding="pruner",
        statistics="exact",
        true_sequential=True,
    )
    model = random_model("llama")
    calibration = Calibration((tokens,), device=torch.device("cpu"), offload=True)
    rules(model, calibration, Memory(memory), lambda: {"of": "this"})
    ordered = pruned_by(WANDA, "llama", tokens, ordered=True)
    assert_same_bits(model.state_dict(), ordered.state_dict())


def test_rounds_that_prune_anew_take_the_order_of_the_run(tokens: Tensor) -> None:
    model, dense = random_model("llama"), random_model("llama")
    pair = ModelPair(model, dense, Calibration((tokens,)))
    rates = dict.fromkeys(prunable_linears(model), 0.6)
    prune_and_compare(pair, WANDA, rates, Pattern(), true_sequential=True)
    ordered = pruned_by(WANDA, "llama", tokens, ordered=True)
    assert_same_bits(model.state_dict(), ordered.state_dict())


def test_a_linear_that_stays_dense_is_in_no_group(tokens: Tensor) -> None:
    model = random_model("llama")
    choose_(model, PrunableNames(include=None, exclude=("o_proj",)))
    for visit in Calibration((tokens,)).walk(model):
        assert visit.call_groups(visit.linears) == [
            group for group in GROUPS["llama"] if group != OUTPUT
        ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pruner=magnitude"], "pruner=magnitude reads none; set true_sequential=false"),
        (["pruner=none", "sparsity=0", "method=none"], "pruner=none reads none"),
        (["statistics=dense"], "statistics=dense takes them once"),
    ],
)
def test_an_order_of_what_nothing_reads_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preflight.check(compose("run", [*overrides, "true_sequential=true"]))


def test_the_library_refuses_it_too_and_prunes_in_order(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="reads none"):
        api.prune(random_model("llama"), None, pruner="magnitude", true_sequential=True)
    model = random_model("llama")
    api.prune(model, tokens, sparsity=0.6, true_sequential=True)
    ordered = pruned_by(WANDA, "llama", tokens, ordered=True)
    assert_same_bits(model.state_dict(), ordered.state_dict())


def test_any_other_run_takes_either_order() -> None:
    preflight.check(compose("run", ["true_sequential=true", "pruner=sparsegpt"]))
    assert compose("run").true_sequential is False

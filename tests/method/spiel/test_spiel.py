"""SpIEL as a baseline: SM3 by hand, growth by products, and zeros as before in the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support import contracts
from support.contracts import Interrupt, InterruptBefore, bench_for, bits, method_of, pruned_model
from support.layers import random, sparse_linear
from support.tiers import slow_but_for
from torch import nn

from sparsemend.method.adapter.delta.linear import DeltaLinear, delta_linears
from sparsemend.method.adapter.delta.schedule import RoundSchedule
from sparsemend.method.spiel import spiel as spiel_module
from sparsemend.method.spiel.sm3 import Sm3, best_products
from sparsemend.method.spiel.spiel import PRUNE_BACK, ProductRounds, Spiel
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears

AG, MA = (), ("method.selection=moments", "method.learning_rate=0.1")


def spiel(*overrides: str) -> Spiel:
    """Ten steps with rounds after 2, 6 and 10."""
    method = method_of("spiel", *overrides)
    assert isinstance(method, Spiel)
    method.max_steps, method.update_interval, method.accumulation_steps = 10, 4, 2
    method.__post_init__()
    return method


def sm3_layer(**settings: float) -> tuple[DeltaLinear, Sm3]:
    """Two by three with deltas at (0, 0), (0, 2) and (1, 2)."""
    layer = DeltaLinear(sparse_linear(2, 3), torch.tensor([0, 2, 5]), "scatter")
    return layer, Sm3([layer], **{"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **settings})


def test_sm3_by_hand() -> None:
    """After g = (1, 2, 3): u = (4, 9), w = (1, 0, 9); g = (1, 1, 1) then sees nu = (2, 5, 10)."""
    layer, optimizer = sm3_layer()
    one = torch.ones(3).double()
    for gradient in (torch.tensor([1.0, 2, 3]).double(), one):
        layer.values.grad = gradient
        optimizer.step()
    rows, columns = optimizer.accumulators(layer)
    assert rows.view(-1).tolist() == [5, 10]
    assert columns.view(-1).tolist() == [2, 0, 10]
    expected = -0.1 * (1 + torch.tensor([2.0, 5.0, 10.0]).double() ** -0.5)
    torch.testing.assert_close(layer.values.detach(), expected, rtol=1e-7, atol=0)


def test_sm3_with_momentum_and_decay() -> None:
    layer, optimizer = sm3_layer(momentum=0.9, weight_decay=0.5)
    layer.values.grad = torch.ones(3).double()
    optimizer.step()
    torch.testing.assert_close(layer.values.detach(), torch.full((3,), -0.01 * 0.95).double())


def test_best_products_are_those_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemend.method.spiel.sm3.CHUNK", 10)  # two rows at a time
    rows, columns = random(7, 1, seed=0).abs(), random(1, 5, seed=1).abs()
    held = torch.tensor([3, 4, 20, 33])
    table = (rows * columns).view(-1)
    table[held] = -1
    positions, score = best_products(rows, columns, held, 6)
    assert positions.tolist() == table.argsort(descending=True)[:6].tolist()
    assert torch.equal(score, table[positions])


def test_a_round_by_products_replaces_every_dropped_delta() -> None:
    """What just left is no candidate, so that nothing returns."""
    layer = DeltaLinear(
        sparse_linear(6, 8),
        torch.randperm(48, generator=torch.Generator().manual_seed(0))[:10],
        "scatter",
    )
    optimizer = Sm3([layer], lr=0.1, momentum=0.0, weight_decay=0.0)
    layer.values.grad = random(10, seed=2)
    optimizer.step()
    before = layer.indices.tolist()
    small = layer.values.abs().argsort()[:4]
    schedule = RoundSchedule(interval=4, window=2, steps=8, initial=0.4, first=None, decay="cosine")
    rounds = ProductRounds(schedule, None, seed_age_offset=0)
    rows, columns = (t.clone() for t in optimizer.accumulators(layer))
    move = rounds.choose(layer, optimizer, 4)
    assert sorted(move.slots.tolist()) == sorted(small.tolist())
    assert move.returning.numel() == 0
    rounds.update(nn.ModuleList([layer]), optimizer, 2)
    assert len(set(before) & set(layer.indices.tolist())) == 10 - rounds.records[0]["moved"][0]
    assert torch.equal(optimizer.accumulators(layer)[0], rows)
    assert torch.equal(optimizer.accumulators(layer)[1], columns)


def test_what_grows_starts_without_the_momentum_of_what_left() -> None:
    """And what stays keeps its own, also where sorting moves it to another slot."""
    layer = DeltaLinear(
        sparse_linear(6, 8),
        torch.randperm(48, generator=torch.Generator().manual_seed(0))[:10],
        "scatter",
    )
    optimizer = Sm3([layer], lr=0.1, momentum=0.9, weight_decay=0.0)
    layer.values.grad = random(10, seed=2)
    optimizer.step()
    average = optimizer.state[layer.values]["average"]
    before = dict(zip(layer.indices.tolist(), average.tolist(), strict=True))
    schedule = RoundSchedule(interval=4, window=2, steps=8, initial=0.4, first=None, decay="cosine")
    ProductRounds(schedule, None, seed_age_offset=0).update(
        nn.ModuleList([layer]), optimizer, step=2
    )
    after = dict(zip(layer.indices.tolist(), average.tolist(), strict=True))
    assert before.keys() != after.keys()
    assert after == {position: before.get(position, 0.0) for position in after}


WAYS_BACK = [
    (selection, prune_back, pattern)
    for selection in (AG, MA)
    for prune_back in PRUNE_BACK
    for pattern in ("unstructured", "2:4")
]


@pytest.mark.parametrize(
    ("selection", "prune_back", "pattern"),
    # each selection, each way back and each pattern once at least
    slow_but_for(
        WAYS_BACK, [way for way in WAYS_BACK if (way[0] == AG) == (way[2] == "unstructured")]
    ),
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_zeros_are_filled_in_and_pruned_back(
    selection: tuple[str, ...], prune_back: str, pattern: str, tmp_path: Path
) -> None:
    model = pruned_model(pattern)
    before = {n: linear.keep.clone() for n, linear in sparse_linears(model)}
    method = spiel(*selection, f"method.prune_back={prune_back}")
    report = method.repair(model, bench_for(tmp_path, pattern=pattern))
    check_supports(model)
    deltas = report["trained_parameters"]
    assert 0 < report["filled_zeros"] <= deltas
    assert report["validation/loss/folded"] != report["validation/loss"]
    assert sum(sum(one["moved"]) for one in report["evolution"]["rounds"]) > 0
    for name, linear in sparse_linears(model):
        assert type(linear) is SparseLinear
        assert int(linear.keep.sum()) == int(before[name].sum())
        if prune_back == "support":
            assert torch.equal(linear.keep, before[name])
        if pattern == "2:4":
            groups = linear.keep.reshape(linear.out_features, -1, 4).sum(dim=2)
            assert (groups == 2).all()


# moments are the optimizer's own, accumulated gradients are in the checkpoint beside it
@pytest.mark.parametrize(
    "selection", [pytest.param(AG, id="AG"), pytest.param(MA, id="MA", marks=pytest.mark.slow)]
)
def test_a_fit_killed_before_and_after_a_round_resumes_to_the_same_bits(
    selection: tuple[str, ...], tmp_path: Path
) -> None:
    whole = pruned_model()
    spiel(*selection).repair(whole, bench_for(tmp_path / "whole"))
    for step in (5, 6):
        out = tmp_path / str(step)
        with pytest.raises(Interrupt):
            spiel(*selection).repair(pruned_model(), bench_for(out, InterruptBefore(step)))
        model, bench = pruned_model(), bench_for(out)
        object.__setattr__(bench, "resume_from", out / "checkpoints" / "last.ckpt")
        spiel(*selection).repair(model, bench)
        contracts.assert_same_bits(bits(whole), bits(model))


def test_the_base_keeps_its_support_while_deltas_lie_anywhere(tmp_path: Path) -> None:
    model = pruned_model()
    method = spiel()
    method.attach(model, bench_for(tmp_path))
    layers = [layer for _, layer in delta_linears(model)]
    outside = sum(int((~layer.keep.reshape(-1)[layer.indices.long()]).sum()) for layer in layers)
    assert outside > 0
    assert not any(layer.weight[~layer.keep].any() for layer in layers)


def test_pruning_back_rounds_as_the_run_did(tmp_path: Path) -> None:
    """At 0.48 of 32 or 48 inputs Wanda's own rule and the exact budget differ."""
    counts = {}
    for rounding in ("pruner", "exact_budget"):
        bench = bench_for(tmp_path / rounding)
        object.__setattr__(bench, "rounding", rounding)
        rates = dict.fromkeys(bench.allocation, 0.48)
        allocation = dataclasses.replace(bench.allocation, rates=rates, target=0.48)
        object.__setattr__(bench, "allocation", allocation)
        model = pruned_model()
        spiel().repair(model, bench)
        counts[rounding] = {n: int((~m.keep).sum()) for n, m in sparse_linears(model)}
    sizes = {n: m.keep.numel() for n, m in sparse_linears(model)}
    assert all(counts["pruner"][n] < 0.48 * sizes[n] for n in sizes)
    assert sum(counts["exact_budget"].values()) == round(0.48 * sum(sizes.values()))


def test_the_runs_pruner_finds_the_model_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit leaves it on the host; here `cpu`, and the device is `cpu:0`."""
    model, bench = pruned_model(), bench_for(tmp_path)
    object.__setattr__(bench, "device", torch.device("cpu", 0))
    object.__setattr__(bench, "true_sequential", True)
    to, prune, seen, orders = nn.Module.to, spiel_module.prune, [], []

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if module is model:
            seen.append(args[0])
        return to(module, *args, **kwargs)

    def noted(*args: Any, **kwargs: Any) -> None:
        seen.append("prune")
        orders.append(kwargs["true_sequential"])
        prune(*args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(spiel_module, "prune", noted)
    spiel().repair(model, bench)
    assert seen[seen.index("prune") - 1].index == 0
    assert orders == [True]  # that of the run


def test_the_runs_pruner_cannot_prune_back_what_it_did_not_prune(tmp_path: Path) -> None:
    from sparsemend.pruner.existing import Existing

    bench = bench_for(tmp_path)
    object.__setattr__(bench, "pruner", Existing(masks=None))
    with pytest.raises(ValueError, match=r"set method.prune_back=magnitude"):
        spiel().repair(pruned_model(), bench)

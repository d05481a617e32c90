"""Global and LAMP: one threshold over pooled scores."""

from itertools import pairwise

import pytest
import torch
from oracles import schedule_oracle
from support.families import random_model
from support.schedules import schedule_of
from torch import Tensor

from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.lamp import ascending_scores
from sparsemend.sparsity_schedule.rates.pooled import lowest_counts

FREE = Pattern()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.77, 1.0])
def test_counts_are_those_of_sorting_everything(share: float) -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = ((30, 40), (7, 11), (64, 16))
    matrices = [10.0**i * torch.rand(s, generator=generator) for i, s in enumerate(sizes)]
    matrices[1] = matrices[1].round(decimals=1)  # ties within a matrix
    pooled = torch.cat([m.flatten() for m in matrices])
    count = round(share * len(pooled))
    order = pooled.argsort(stable=True)[:count]
    edges = torch.tensor([0, 1200, 1277, len(pooled)])
    expected = [int(((order >= a) & (order < b)).sum()) for a, b in pairwise(edges)]
    assert lowest_counts(lambda: iter(matrices), count) == expected


def test_ties_at_the_threshold_fall_to_the_earlier_matrix() -> None:
    matrices = [torch.ones(2, 2), torch.zeros(1, 3), torch.ones(2, 2), torch.full((2, 2), 2.0)]
    assert lowest_counts(lambda: iter(matrices), 9) == [4, 3, 2, 0]
    assert lowest_counts(lambda: iter([torch.tensor([[-0.0, 1.0]])]), 1) == [1]


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_global_rates_are_the_shares_below_one_threshold(
    family: str, score: str, tokens: Tensor
) -> None:
    model = random_model(family)
    inner = [m for block in schedule_oracle.block_linears(find_blocks(model)[1]) for m in block]
    lists = [m.weight.detach().abs().flatten().tolist() for m in inner]
    if score == "wanda":
        dense = schedule_oracle.dense_scores(model, find_blocks(model)[1], tokens)
        lists = [list(m.flat) for block in dense for m in block]
    found = schedule_of("global", score=score).allocate(
        model, Calibration(tokens.split(3)), 0.6, FREE
    )
    expected = schedule_oracle.global_shares(lists, 0.6)
    # fp32 against float64: a weight next to the threshold may change sides
    assert list(found.values()) == pytest.approx(expected, abs=1.01 / min(map(len, lists)))
    assert len({round(rate, 3) for rate in found.values()}) > 3


def test_lamp_scores_are_those_of_the_formula() -> None:
    weight = torch.randn(9, 14, generator=torch.Generator().manual_seed(2))
    expected = schedule_oracle.lamp_scores(weight.double().numpy())
    found = ascending_scores(weight)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert float(found[-1]) == 1.0
    assert ascending_scores(torch.zeros(2, 2)).tolist() == [0.0] * 4
    # by hand: 1, 4, 4 -> 1/9, 4/8, 4/4
    by_hand = ascending_scores(torch.tensor([[2.0, -1.0, 2.0]]))
    assert by_hand.tolist() == pytest.approx([1 / 9, 0.5, 1.0])


def test_lamp_rates_are_the_shares_below_one_threshold() -> None:
    model = random_model("llama")
    linears = prunable_linears(model)
    lists = [
        schedule_oracle.lamp_scores(m.weight.detach().double().numpy()) for m in linears.values()
    ]
    found = schedule_of("lamp").allocate(model, Calibration(()), 0.6, FREE)
    expected = schedule_oracle.global_shares(lists, 0.6)
    assert list(found.values()) == pytest.approx(expected, abs=1.01 / min(map(len, lists)))


@pytest.mark.parametrize("name", ["global", "lamp"])
def test_pooled_counts_are_whole_and_add_up_to_the_target(name: str) -> None:
    model = random_model("llama")
    found = schedule_of(name).allocate(model, Calibration(()), 0.7, FREE)
    counts = [rate * found.sizes[n] for n, rate in found.items()]
    assert counts == pytest.approx([round(c) for c in counts], abs=1e-6)
    assert round(sum(counts)) == round(0.7 * sum(found.sizes.values()))


@pytest.mark.parametrize("name", ["global", "lamp"])
def test_a_block_shares_the_mean_of_its_linears(name: str) -> None:
    model = random_model("llama")
    single = schedule_of(name, granularity="linear").allocate(model, Calibration(()), 0.7, FREE)
    shared = schedule_of(name, granularity="block").allocate(model, Calibration(()), 0.7, FREE)
    for block in range(3):
        inside = [n for n in single if f".{block}." in n]
        rates = {shared[n] for n in inside}
        assert len(rates) == 1
        assert rates.pop() == pytest.approx(single.mean_of(inside), abs=1e-12)

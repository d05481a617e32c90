"""The groups of linears that a block calls one after the other."""

from __future__ import annotations

import pytest
import torch
from support.families import random_model
from torch import Tensor, nn

from sparsemend.blocks.order import CallOrder
from sparsemend.blocks.walk import Calibration

GROUPS = {
    "llama": [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]],
    "opt": [["q", "k", "v"], ["out"], ["fc1"], ["fc2"]],
    "gpt_neox": [["query_key_value"], ["dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]],
    "phi": [["q", "k", "v", "fc1"], ["dense"], ["fc2"]],  # attention and MLP of one input
}


@pytest.mark.parametrize("family", GROUPS)
def test_linears_of_one_input_are_a_group_in_the_order_of_calls(
    family: str, tokens: Tensor
) -> None:
    for visit in Calibration((tokens[:2],)).walk(random_model(family)):
        groups = [
            [name.rpartition(".")[2].removesuffix("_proj") for name in group]
            for group in visit.call_groups(visit.linears)
        ]
        assert sorted(map(sorted, groups)) == sorted(map(sorted, GROUPS[family]))
        if family != "phi":
            assert groups == GROUPS[family]
        assert sum(map(len, groups)) == len(visit.linears)


class Chosen(nn.Module):
    """Experts of which a token's sign chooses; a stack; and a linear that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.stack = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor, experts: list[int]) -> Tensor:
        for expert in experts:
            x = x + self.down[expert](self.up[expert](x * 2))
        return self.stack(x)


def order_of(block: Chosen, *batches: list[int]) -> CallOrder:
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    order = CallOrder(block, linears)
    for experts in batches:
        with order.hooks(), torch.no_grad():
            block(torch.ones(1, 4), experts)
    return order


def test_experts_are_a_group_and_the_parts_of_a_stack_are_not() -> None:
    order = order_of(Chosen(), [1, 0, 2])
    assert order.groups() == [
        ["up.1", "up.0", "up.2"],
        ["down.1", "down.0", "down.2"],
        ["stack.0"],
        ["stack.2"],
        ["unused"],
    ]
    assert not order.complete


def test_an_expert_that_a_later_batch_chooses_joins_its_kind() -> None:
    groups = order_of(Chosen(), [1], [2, 0]).groups()
    assert groups[:2] == [["up.1", "up.2", "up.0"], ["down.1", "down.2", "down.0"]]


def test_no_hook_stays() -> None:
    block = Chosen()
    order_of(block, [0])
    assert not any(module._forward_pre_hooks for module in block.modules())

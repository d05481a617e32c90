"""Linears that a choice leaves dense are to all other code no linears of the blocks."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from support.families import random_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.choice import choose_, choose_as_, dense_linears, report_choice
from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.config.prunable import PrunableNames, defaults
from sparsemend.prune import prune
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.count import sparsity_report
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.uniform import Uniform

ROUTERS = PrunableNames(include=None, exclude=defaults())
WINDOWS = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(0))


class RoutedMlp(nn.Module):
    """A mixture of linear experts, each token by the best of its router."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return sum(
            weights[..., index : index + 1] * expert(x) for index, expert in enumerate(self.experts)
        )


def mixture() -> PreTrainedModel:
    model: Any = random_model("llama")
    torch.manual_seed(1)
    for block in model.model.layers:
        block.mlp = RoutedMlp(32, 4)
    return model


MODELS = {"mixture": mixture, "opt": lambda: random_model("opt")}
EXCLUDED = {"mixture": "gate", "opt": "fc1"}


@pytest.mark.parametrize("kind", MODELS)
def test_what_stays_dense_is_neither_pruned_nor_counted(kind: str) -> None:
    model = MODELS[kind]()
    choose_(model, PrunableNames(include=None, exclude=(EXCLUDED[kind],)))
    before = {name: linear.weight.clone() for name, linear in dense_linears(model).items()}
    assert len(before) == 3
    calibration, pattern = Calibration((WINDOWS,)), Pattern()
    allocation = Uniform().allocate(model, calibration, 0.5, pattern)
    assert not before.keys() & allocation.keys()
    prune(model, calibration, Wanda(variant=False), allocation, pattern)
    report = sparsity_report(model)
    assert report.of_prunable == 0.5
    assert report.excluded == tuple(before)
    linears = prunable_linears(model)
    assert report.total.weights == sum(linear.weight.numel() for linear in linears.values())
    assert all(isinstance(linear, SparseLinear) for linear in linears.values())
    for name, weight in before.items():
        assert type(linear := model.get_submodule(name)) is nn.Linear
        assert torch.equal(linear.weight, weight)


def test_the_default_leaves_routers_dense_and_nothing_of_a_dense_model() -> None:
    routed, dense = mixture(), random_model("llama")
    choose_(routed, ROUTERS)
    choose_(dense, ROUTERS)
    assert list(dense_linears(routed)) == [f"model.layers.{i}.mlp.gate" for i in range(3)]
    assert dense_linears(dense) == {}


def test_a_copy_stays_dense_where_its_model_does() -> None:
    model = mixture()
    choose_(model, ROUTERS)
    assert list(dense_linears(copy.deepcopy(model))) == list(dense_linears(model))
    fresh = mixture()
    choose_as_(fresh, model)
    assert list(prunable_linears(fresh)) == list(prunable_linears(model))


def test_a_later_choice_takes_the_place_of_an_earlier_one() -> None:
    model = mixture()
    choose_(model, PrunableNames(include=("o_proj",), exclude=()))
    choose_(model, PrunableNames(include=None, exclude=("q_proj",)))
    assert len(dense_linears(model)) == 3
    assert len(prunable_linears(model)) == 3 * (3 + 5)


def test_a_refused_choice_changes_nothing() -> None:
    model = mixture()
    choose_(model, ROUTERS)
    before = list(dense_linears(model))
    with pytest.raises(ValueError, match=r"prunable\.exclude=fc1 matches no linear"):
        choose_(model, PrunableNames(include=None, exclude=("q_proj", "fc1")))
    assert list(dense_linears(model)) == before


def test_a_choice_is_logged_and_routers_that_it_prunes_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = mixture()
    with caplog.at_level(logging.INFO):
        for names in (ROUTERS, PrunableNames(include=None, exclude=("o_proj",))):
            choose_(model, names)
            report_choice(model, names)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert caplog.messages[0] == "3 linears stay dense: model.layers.*.mlp.gate"
    assert caplog.messages[2].startswith("model.layers.*.mlp.gate may be pruned")

"""Relative error by hand, and the side-by-side walk against stored outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from support.contracts import pruned_model, windows
from support.families import random_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.method.adapter.block_errors import (
    ModelPair,
    output_errors,
    prune_and_compare,
    relative_error,
)
from sparsemend.prune import prune
from sparsemend.pruner.base import Pruner
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.pattern import Pattern

CPU = torch.device("cpu")
UNSTRUCTURED = Pattern.parse("unstructured")


def pair(model: nn.Module, dense: nn.Module) -> ModelPair:
    return ModelPair(model, dense, Calibration(windows(6).split(2), device=CPU))


def test_the_error_is_the_mean_over_channels_of_the_relative_squared_error() -> None:
    dense = [torch.tensor([[[1.0, 0.0, 2.0]]]), torch.tensor([[[2.0, 0.0, 1.0]]])]
    pruned = [torch.tensor([[[1.0, 3.0, 0.0]]]), torch.tensor([[[1.0, 5.0, 1.0]]])]
    # channel 0: 1 / 5, channel 2: 4 / 5; channel 1 is dead and left out
    assert relative_error(dense, pruned) == pytest.approx(0.5)
    assert relative_error(dense, dense) == 0


def test_channels_that_are_all_zero_give_no_error() -> None:
    assert relative_error([torch.zeros(1, 2, 3)], [torch.ones(1, 2, 3)]) == 0


def stored_outputs(model: PreTrainedModel, tokens: Tensor) -> list[Tensor]:
    """Every block's output from one forward of the whole model with hooks."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor) -> None:
        found.append(output)

    handles = [block.register_forward_hook(keep) for block in find_blocks(model)[1]]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
def test_streamed_errors_are_those_of_stored_outputs(family: str) -> None:
    dense, model = random_model(family), pruned_model(family=family)
    wanted = [
        relative_error([d], [y])
        for d, y in zip(
            stored_outputs(dense, windows(6)), stored_outputs(model, windows(6)), strict=True
        )
    ]
    # fp32 activations in batches of 1 and of 6
    assert output_errors(pair(model, dense)) == pytest.approx(wanted, rel=1e-4)
    assert min(wanted) > 1e-4


@pytest.mark.parametrize(
    "pruner",
    [Wanda(variant=False), SparseGPT(block_size=16, damping=0.01), Magnitude(group="row")],
)
def test_pruning_beside_the_dense_model_is_the_prune_loop(pruner: Pruner) -> None:
    dense, plain = random_model("llama"), random_model("llama")
    rates = dict.fromkeys(prunable_linears(plain), 0.5)
    prune(plain, Calibration(windows(6).split(2)), pruner, rates, UNSTRUCTURED)
    model = copy.deepcopy(dense)
    errors = prune_and_compare(pair(model, dense), pruner, rates, UNSTRUCTURED)
    one, other = plain.state_dict(), model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert errors == output_errors(pair(model, dense))


def test_bringing_blocks_to_the_device_one_by_one_changes_no_error() -> None:
    dense, model = random_model("llama"), pruned_model()
    here, brought = (
        ModelPair(model, dense, Calibration(windows(4).split(2), device=CPU, offload=offload))
        for offload in (False, True)
    )
    assert output_errors(here) == output_errors(brought)

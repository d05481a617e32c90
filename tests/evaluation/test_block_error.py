import math
from dataclasses import replace

import pytest
import torch
from support.evaluation_inputs import evaluation_input
from support.families import FAMILIES, random_model
from support.streaming import streamed
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.walk import Calibration
from sparsemend.evaluation.base import EvaluationInput
from sparsemend.evaluation.block_error import BlockError, growth, relative_error
from sparsemend.instruments import LiveBytes
from sparsemend.sparse.linear import SparseLinear


def given(tokens: Tensor, family: str, *, batch: int = 3) -> EvaluationInput:
    return evaluation_input(tokens, family=family, batch_size=batch)


def halved(family: str, *, blocks: range | None = None, **settings: int) -> PreTrainedModel:
    """A random model whose linears (of some blocks) keep every other input."""
    model = random_model(family, **settings)
    for name, linear in prunable_linears(model).items():
        keep = torch.ones_like(linear.weight, dtype=torch.bool)
        block = int(next(part for part in name.split(".") if part.isdigit()))
        if blocks is None or block in blocks:
            keep[:, ::2] = False
        model.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))
    return model


def outputs_by_hook(model: PreTrainedModel, tokens: Tensor) -> list[Tensor]:
    """The output of every block in one plain forward of all windows."""
    _, blocks = find_blocks(model)
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda m, a, out: seen.append(out if isinstance(out, Tensor) else out[0])
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_error_of_the_outputs_in_a_plain_forward(family: str, tokens: Tensor) -> None:
    model = halved(family)
    metrics = BlockError(windows=8)(model, given(tokens, family))
    pairs = zip(
        outputs_by_hook(random_model(family), tokens), outputs_by_hook(model, tokens), strict=True
    )
    for index, (dense, sparse) in enumerate(pairs):
        expected = float((dense - sparse).norm() / dense.norm())
        # fp32 forwards batched by 3 against all at once
        assert metrics[f"block_error/{index}"] == pytest.approx(expected, rel=1e-4)


def test_a_streamed_pair_has_the_same_errors(tokens: Tensor) -> None:
    inputs = given(tokens, "gemma2")
    whole = BlockError(windows=8)(halved("gemma2"), inputs)
    dense = streamed(random_model("gemma2"))
    walked = BlockError(windows=8)(
        streamed(halved("gemma2")), replace(inputs, load_dense=lambda: dense)
    )
    assert walked == whole
    assert residency_of(dense).most == 1


@pytest.mark.slow  # measures memory of deep models
def test_a_streamed_pair_needs_no_more_memory_in_a_deeper_model(tokens: Tensor) -> None:
    def peak(depth: int) -> int:
        size = {"num_hidden_layers": depth, "intermediate_size": 512}
        dense = streamed(random_model("llama", **size))
        inputs = replace(given(tokens, "llama"), load_dense=lambda: dense)
        model = streamed(halved("llama", **size))
        with LiveBytes([]) as live:
            BlockError(windows=8)(model, inputs)
        return live.peak

    assert peak(6) == peak(2)


def test_blocks_before_the_first_cut_have_no_error(tokens: Tensor) -> None:
    _, blocks = find_blocks(random_model("llama"))
    last = len(blocks) - 1
    model = halved("llama", blocks=range(last, last + 1))
    metrics = BlockError(windows=8)(model, given(tokens, "llama"))
    assert metrics["block_error/0"] == 0
    assert metrics["block_error/last"] > 0
    assert math.isnan(metrics["block_error/growth"])


def test_only_the_windows_asked_for_are_compared(tokens: Tensor) -> None:
    model = halved("llama")
    few = BlockError(windows=2)(model, given(tokens, "llama"))
    same = BlockError(windows=8)(model, given(tokens[:2], "llama"))
    assert few == same


def test_a_dense_model_has_nothing_to_compare(tokens: Tensor) -> None:
    assert BlockError(windows=8)(random_model("llama"), given(tokens, "llama")) == {}


def test_the_measured_model_is_left_as_it_was(tokens: Tensor) -> None:
    model = halved("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    BlockError(windows=8)(model, given(tokens, "llama"))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert len(list(Calibration(tokens.split(4)).walk(model))) == len(find_blocks(model)[1])


def test_relative_error_by_hand() -> None:
    dense = [torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])]
    now = [torch.tensor([[[3.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])]
    assert relative_error(dense, now) == pytest.approx(2 / 5)


def test_growth_is_the_factor_per_block() -> None:
    assert growth([0.1, 0.2, 0.4, 0.8]) == pytest.approx(2.0)
    assert growth([0.3, 0.3, 0.3]) == pytest.approx(1.0)
    assert math.isnan(growth([0.0, 0.1]))
    assert math.isnan(growth([0.1]))

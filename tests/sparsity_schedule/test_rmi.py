"""Similarity against a direct linear CKA on stored features, and the schedule made of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks, prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.prune import prune
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.pruner.wanda import Wanda
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.rates import similarity
from sparsemend.sparsity_schedule.rates.similarity import block_similarity, gram
from sparsemend.sparsity_schedule.rmi import Rmi

UNSTRUCTURED = Pattern.parse("unstructured")
Models = Callable[..., PreTrainedModel]


def rmi(**changes: object) -> Rmi:
    settings = {"similarity_samples": 6, "beta": 1.0, "delta": None, "solver": "lp"}
    return Rmi(**{**settings, **changes})  # type: ignore[arg-type]


def direct_cka(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """|Yc^T Xc|_F^2 over the product of the norms, from whole stored features."""
    features = []
    for visit in Calibration([tokens], together=len(tokens)).walk(model):
        rows = visit.inputs[0].double().flatten(1).clone()
        features.append(rows - rows.mean(dim=0))
    result = torch.empty(len(features), len(features), dtype=torch.float64)
    for i, x in enumerate(features):
        for j, y in enumerate(features):
            cross = (y.T @ x).square().sum()
            result[i, j] = cross / ((x.T @ x).norm() * (y.T @ y).norm())
    return result


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
def test_similarity_is_linear_cka_of_the_stored_features(
    make_model: Models, tokens: Tensor, family: str
) -> None:
    model = make_model(family).double()
    found = block_similarity(model, Calibration(tokens.split(3)), 6)
    # everything in fp64: sums of a few thousand products
    torch.testing.assert_close(found, direct_cka(model, tokens[:6]), rtol=1e-11, atol=1e-11)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.diagonal(), torch.ones(3, dtype=torch.float64))


def test_strips_of_tokens_add_up_to_the_whole_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 7, 5, dtype=torch.float64, generator=generator) for _ in range(3)]
    rows = torch.cat(states).flatten(1)
    for strip in (1, 3 * 8 * 6 * 5, 2**25):  # a token, three tokens, all
        monkeypatch.setattr(similarity, "STRIP_BYTES", strip)
        torch.testing.assert_close(gram(states), rows @ rows.T)


def test_bf16_states_are_multiplied_in_fp32() -> None:
    states = [torch.randn(4, 9, 33, generator=torch.Generator().manual_seed(0)).bfloat16()]
    rows = states[0].flatten(1).float()
    assert torch.equal(gram(states), (rows @ rows.T).double())


def test_the_model_is_left_as_it_was(make_model: Models, tokens: Tensor) -> None:
    model = make_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rmi().allocate(model, Calibration(tokens.split(2)), 0.6, UNSTRUCTURED)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("solver", ["lp", "slsqp"])
def test_rates_are_per_block_and_their_mean_is_the_target(
    make_model: Models, tokens: Tensor, solver: str
) -> None:
    model = make_model("llama")
    allocation = rmi(solver=solver).allocate(model, Calibration(tokens.split(2)), 0.6, UNSTRUCTURED)
    assert allocation.mean == pytest.approx(0.6, abs=1e-9)
    rates = [{allocation[n] for n in allocation if f".{i}." in n} for i in range(3)]
    assert [len(r) for r in rates] == [1, 1, 1]
    assert all(0.58 - 1e-9 <= rate <= 0.62 + 1e-9 for r in rates for rate in r)


def test_the_block_most_like_the_others_loses_most(make_model: Models, tokens: Tensor) -> None:
    model = make_model("llama")
    redundancy = block_similarity(model, Calibration([tokens]), 6).sum(dim=1)
    allocation = rmi().allocate(model, Calibration([tokens]), 0.6, UNSTRUCTURED)
    by_block = [allocation[f"model.layers.{i}.mlp.up_proj"] for i in range(3)]
    assert by_block[int(redundancy.argmax())] == pytest.approx(0.62)
    assert by_block[int(redundancy.argmin())] == pytest.approx(0.58)


@pytest.mark.parametrize(
    "pruner",
    [
        Wanda(variant=False),
        Magnitude(group="row"),
        Magnitude(group="layer"),
        SparseGPT(block_size=128, damping=0.01),
    ],
)
def test_every_pruner_rounds_the_rates_in_its_own_way(
    make_model: Models, tokens: Tensor, pruner: Wanda | Magnitude | SparseGPT
) -> None:
    model = make_model("llama")
    allocation = rmi().allocate(model, Calibration([tokens]), 0.6, UNSTRUCTURED)
    prune(model, Calibration([tokens]), pruner, allocation, UNSTRUCTURED)
    per_row = isinstance(pruner, Wanda) or getattr(pruner, "group", "") == "row"
    for name, linear in prunable_linears(model).items():
        assert isinstance(linear, SparseLinear)
        zeros, (rows, columns) = int((~linear.keep).sum()), linear.weight.shape
        if per_row:
            assert zeros == rows * int(columns * allocation[name])
        else:
            assert zeros == int(rows * columns * allocation[name]) + 1


def test_a_mixed_pattern_gets_whole_ns(make_model: Models, tokens: Tensor) -> None:
    model = make_model("llama")
    pattern = Pattern.parse("mixed:8")
    allocation = rmi(delta=0.2).allocate(model, Calibration([tokens]), 0.5, pattern)
    assert all((8 * rate).is_integer() for rate in allocation.values())
    assert len(set(allocation.values())) > 1


def test_a_fixed_pattern_is_refused(make_model: Models, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="use pattern=mixed:4"):
        rmi().allocate(make_model("llama"), Calibration([tokens]), 0.5, Pattern.parse("2:4"))


def test_too_few_sequences_are_refused(make_model: Models, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"similarity_samples=9 exceeds the 8 calibration"):
        rmi(similarity_samples=9).allocate(
            make_model("llama"), Calibration([tokens]), 0.5, UNSTRUCTURED
        )


def test_equal_sequences_have_no_similarity(make_model: Models, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"model\.layers\.0 gets the same input for all 6"):
        block_similarity(make_model("llama"), Calibration([tokens[:1].repeat(6, 1)]), 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"similarity_samples": 2}, "similarity_samples 2 is below 3"),
        ({"beta": -1.0}, r"sparsity_schedule\.beta -1\.0 is below 0"),
        ({"delta": 1.5}, r"delta 1\.5 is not in \[0, 1\)"),
        ({"solver": "simplex"}, "'simplex' is not one of: lp, slsqp"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rmi(**changes)


def test_a_bf16_model_in_batches_gives_the_similarity_of_one_batch(
    make_model: Models, tokens: Tensor
) -> None:
    model = make_model("llama").bfloat16()
    one, many = (block_similarity(model, Calibration(tokens.split(size)), 6) for size in (8, 1))
    # activations differ by bf16 roundings of 2^-9 between batch sizes
    torch.testing.assert_close(one, many, atol=2e-2, rtol=0)
    assert len(find_blocks(model)[1]) == len(one)

"""Where LoRS' factors start, against dense gradients and singular vectors in fp64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.contracts import bench_for, method_of, pruned_model, windows
from support.layers import random
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from transformers import PreTrainedModel

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.lors import start as start_module
from sparsemend.method.lors.lors import Lors
from sparsemend.method.lors.start import GradientStart, leading_rows
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.batches import permutation
from sparsemend.training.logits import next_token_loss

CPU = torch.device("cpu")
RANK, SEED = 3, 11


def start(**changes: Any) -> GradientStart:
    settings = {
        "rank": RANK,
        "samples": 4,
        "batch_size": 2,
        "micro_batch": None,
        "activation_checkpointing": False,
        "oversample": 4,
        "niter": 4,
        "gamma": 1.0,
        "masked": False,
        "svd": "exact",
        "linears_per_pass": None,
        "mixed": False,
        "seed": SEED,
    }
    return GradientStart(**{**settings, **changes})


def examples() -> Examples:
    """Twelve windows, each with another number of labels."""
    tokens = windows(12)
    labels = tokens.clone()
    for row in range(12):
        labels[row, : row + 2] = UNLABELLED
    return Examples(tokens, labels)


def decaying(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """A random matrix with singular values 1/k."""
    u, _, vh = torch.linalg.svd(random(outputs, inputs, seed=seed), full_matrices=False)
    return u / torch.arange(1, vh.shape[0] + 1) @ vh


def dense_gradients(model: PreTrainedModel, batches: list[list[int]]) -> dict[str, Tensor]:
    """fp64, by one plain backward pass of the mean of the batches' mean losses."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    data = examples()
    losses = []
    for rows in batches:
        logits = model(input_ids=data.tokens[rows], use_cache=False).logits[:, :-1]
        labels = data.labels[rows][:, 1:]
        chosen = logits.log_softmax(dim=-1).gather(2, labels.clamp(min=0).unsqueeze(2))
        counts = labels != UNLABELLED
        losses.append(-chosen.squeeze(2)[counts].mean())
    (sum(losses) / len(losses)).backward()
    return {name: linear.weight.grad for name, linear in sparse_linears(model)}


def assert_leading(rows: Tensor, gradient: Tensor) -> None:
    """Rows are the leading right singular vectors of `gradient`, up to fp32 noise in it.

    Noise of relative size e turns a vector by at most e s1 / gap (Wedin 1972), gap the distance to
    the nearest other singular value; a backward pass through three fp32 blocks has e = 1e-5.
    """
    _, values, vh = torch.linalg.svd(gradient, full_matrices=False)
    for i, row in enumerate(rows.double()):
        others = torch.cat([values[:i], values[i + 1 :]])
        gap = (others - values[i]).abs().min()
        turned = (vh[i] - (vh[i] @ row) * row).norm()
        assert turned <= 2e-5 * values[0] / gap + 1e-6
        assert row.norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (40, 40)])
def test_the_rows_are_the_leading_right_singular_vectors(
    shape: tuple[int, int], exact: bool
) -> None:
    """A spectrum of 1/k leaves (5/17)^9 of an error after four power iterations in 16."""
    gradient = decaying(*shape)
    rows = leading_rows(gradient, 4, oversample=4, niter=4, exact=exact)
    vh = torch.linalg.svd(gradient)[2][:4]
    cosines = (rows.double() * vh).sum(dim=1).abs()
    assert rows.dtype == torch.float32
    assert (cosines > 1 - 1e-5).all()


def test_without_power_iterations_the_randomised_rows_are_only_close() -> None:
    gradient = decaying(48, 64)
    vh = torch.linalg.svd(gradient)[2][:4]
    torch.manual_seed(0)
    rows = leading_rows(gradient, 4, oversample=1, niter=0, exact=False)
    assert (rows.double() * vh).sum(dim=1).abs().min() < 0.99


@pytest.mark.parametrize("exact", [False, True])
def test_the_largest_entry_of_every_row_is_positive(exact: bool) -> None:
    for seed in range(5):
        rows = leading_rows(decaying(30, 20, seed), 6, oversample=3, niter=4, exact=exact)
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        assert (largest > 0).all()


def test_more_directions_than_the_matrix_has_are_not_asked_for() -> None:
    rows = leading_rows(decaying(5, 20), 4, oversample=4, niter=4, exact=False)
    assert rows.shape == (4, 20)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_start_is_the_svd_of_the_dense_gradient(family: str) -> None:
    """OPT's linears have biases, whose gradients must not take the weights' place."""
    model = pruned_model(family=family)
    order = permutation(12, seed=SEED, epoch=0)
    gradients = dense_gradients(model, [order[:2], order[2:4]])
    found = start().starts(model, examples(), CPU)
    assert found.keys() == gradients.keys()
    for name, rows in found.items():
        assert rows.shape == (RANK, gradients[name].shape[1])
        assert_leading(rows, gradients[name])


def test_pruned_positions_count_unless_the_gradient_is_masked() -> None:
    model = pruned_model()
    order = permutation(12, seed=SEED, epoch=0)
    gradients = dense_gradients(model, [order[:2], order[2:4]])
    found = start(masked=True).starts(model, examples(), CPU)
    plain = start().starts(model, examples(), CPU)
    for name, linear in sparse_linears(model):
        assert_leading(found[name], gradients[name] * linear.keep)
        assert not torch.allclose(found[name], plain[name], atol=1e-2)


def test_batches_weigh_the_same_whatever_they_hold() -> None:
    """Five samples in batches of two: the last is half as large; all label counts differ."""
    model = pruned_model()
    order = permutation(12, seed=SEED, epoch=0)
    batches = [order[:2], order[2:4], order[4:5]]
    found = start(samples=5).starts(model, examples(), CPU)
    expected = dense_gradients(model, batches)
    for name, rows in found.items():
        assert_leading(rows, expected[name])


def test_more_samples_than_examples_are_all_examples() -> None:
    model = pruned_model()
    every = start(samples=12).starts(model, examples(), CPU)
    more = start(samples=1000).starts(model, examples(), CPU)
    assert all(torch.equal(every[name], more[name]) for name in every)


def test_gamma_divides_the_rows() -> None:
    model = pruned_model()
    one = start().starts(model, examples(), CPU)
    half = start(gamma=2.0).starts(model, examples(), CPU)
    assert all(torch.equal(one[name], 2 * half[name]) for name in one)


@pytest.mark.parametrize("svd", ["exact", "randomized"])
@pytest.mark.parametrize("per_pass", [1, 4])
def test_how_many_linears_a_pass_visits_changes_no_bit(svd: str, per_pass: int) -> None:
    model = pruned_model()
    whole = start(svd=svd).starts(model, examples(), CPU)
    torch.manual_seed(99)  # and what was drawn before does not matter
    parts = start(svd=svd, linears_per_pass=per_pass).starts(model, examples(), CPU)
    assert list(parts) == list(whole)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_no_more_linears_than_asked_hold_a_gradient_in_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, visited = pruned_model(), []
    names = [name for name, _ in sparse_linears(model)]

    def watched(model: PreTrainedModel, linears: dict[str, SparseLinear], *_: Any) -> None:
        visited.append(list(linears))

    monkeypatch.setattr(start_module, "take_gradients", watched)
    start(linears_per_pass=4).starts(model, examples(), CPU)
    assert max(map(len, visited)) == 4
    assert [name for part in visited for name in part] == names


def test_each_linear_draws_from_its_own_seed() -> None:
    """The randomised rows of one linear do not depend on which linears came before it."""
    gradient = random(40, 40, seed=1).float()
    settings = start(svd="randomized", oversample=1, niter=0)
    first, again, other = (settings._rows(gradient, index) for index in (2, 2, 3))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_the_start_leaves_the_global_random_state() -> None:
    model = pruned_model()
    state = torch.get_rng_state()
    start(svd="randomized").starts(model, examples(), CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_keeps_its_values_and_ends_frozen_without_gradients() -> None:
    model = pruned_model().train().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start().starts(model, examples(), CPU)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_the_models_own_dropout_is_off() -> None:
    model = pruned_model(family="opt")
    found = start().starts(model, examples(), CPU)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    dropped = start().starts(model.train(), examples(), CPU)
    assert all(torch.equal(found[name], dropped[name]) for name in found)


def test_bf16_mixed_gradients_are_summed_in_fp32_and_close() -> None:
    """The leading vector, which bf16 noise turns least: a few percent at a gap this wide."""
    model = pruned_model()
    plain = start(rank=1).starts(model, examples(), CPU)
    mixed = start(rank=1, mixed=True).starts(model, examples(), CPU)
    cosines = torch.tensor([float((plain[n] * mixed[n]).sum().abs()) for n in plain])
    assert {rows.dtype for rows in mixed.values()} == {torch.float32}
    assert cosines.median() > 0.99
    assert not all(torch.equal(plain[n], mixed[n]) for n in plain)


def test_recomputed_blocks_give_the_same_start_and_their_forwards_back() -> None:
    """Without dropout, which in OPT lies in the block itself."""
    model = pruned_model(family="opt")
    plain = start().starts(model, examples(), CPU)
    recomputed = start(activation_checkpointing=True).starts(model, examples(), CPU)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_batch_without_a_label_is_refused() -> None:
    data = examples()
    data.labels.fill_(UNLABELLED)
    with pytest.raises(FloatingPointError, match=r"loss is nan .* labelled token"):
        start().starts(pruned_model(), data, CPU)


def lors(**changes: Any) -> Lors:
    settings = {**vars(method_of("lors")), "init_svd": "exact", **changes}
    return Lors(**settings)


def test_the_first_sgd_step_follows_the_best_low_rank_gradient(tmp_path: Path) -> None:
    """B A = -lr s U_r S_r V_r^T, on the same data."""
    model, rate = pruned_model(), 0.1
    method = lors(rank=RANK, alpha=2.0, init_samples=12, init_batch_size=12)
    bench = bench_for(tmp_path)
    gradients = full_batch_gradients(model, bench.train.tokens)
    method.attach(model, bench)
    model.requires_grad_(False)
    parameters = method.trainable(model)
    for parameter in parameters:
        parameter.requires_grad_(True)
    next_token_loss(model, bench.train.tokens, bench.train.labels).backward()
    SGD(parameters, lr=rate).step()
    for name, layer in sparse_linears(model):
        assert isinstance(layer, LorsLinear)
        u, values, vh = torch.linalg.svd(gradients[name], full_matrices=False)
        best = u[:, :RANK] * values[:RANK] @ vh[:RANK]
        moved = (layer.lora_b @ layer.lora_a).double().detach()
        # whatever rotation rounding leaves inside the leading subspace cancels in the product
        gap = values[RANK - 1] - values[RANK]
        allowed = 4e-5 * values[0] / gap + 1e-5
        difference = (moved + rate * layer.scale * best).norm()
        assert difference <= allowed * rate * layer.scale * best.norm()


def full_batch_gradients(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model).double().requires_grad_(True)
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: linear.weight.grad for name, linear in sparse_linears(model)}


@pytest.mark.parametrize("init", ["grad_svd", "kaiming"])
def test_the_update_starts_at_zero_whatever_a_is(init: str, tmp_path: Path) -> None:
    model = pruned_model(family="opt")
    lors(init=init).attach(model, bench_for(tmp_path))
    layers = [m for _, m in sparse_linears(model)]
    assert all(isinstance(m, LorsLinear) and m.lora_a.any() for m in layers)
    assert not any(m.lora_b.any() for m in layers)


def test_grad_svd_rows_are_orthonormal_and_kaimings_are_not(tmp_path: Path) -> None:
    for init, orthonormal in (("grad_svd", True), ("kaiming", False)):
        model = pruned_model()
        lors(init=init, rank=RANK).attach(model, bench_for(tmp_path))
        for _, layer in sparse_linears(model):
            gram = layer.lora_a @ layer.lora_a.T
            assert torch.allclose(gram, torch.eye(RANK), atol=1e-5) == orthonormal


def test_two_linears_of_one_input_share_nothing_but_the_input() -> None:
    """Starts are keyed by module: every linear gets the rows of its own gradient."""
    model = pruned_model()
    found = start().starts(model, examples(), CPU)
    q, k = (found[f"model.layers.0.self_attn.{p}_proj"] for p in "qk")
    assert not torch.allclose(q, k, atol=1e-2)
    assert all(isinstance(m, SparseLinear) for _, m in sparse_linears(model))

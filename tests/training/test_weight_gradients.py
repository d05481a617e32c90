"""Dense gradients before training: what is held meanwhile, and that splitting changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, method_of, pruned_model, windows
from support.families import random_model
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.instruments import LiveBytes
from sparsemend.method.adapter.delta.start import all_places, gradient_positions
from sparsemend.sparse.linear import sparse_linears
from sparsemend.training import weight_gradients
from sparsemend.training.logits import next_token_loss
from sparsemend.training.weight_gradients import Backward, recomputing_blocks, take_gradients


def test_recomputed_blocks_keep_no_activations() -> None:
    model = random_model("llama", num_hidden_layers=6)
    tokens = torch.randint(3, 96, (8, 64))
    kept = []
    for way in (nullcontext(), recomputing_blocks(model)):
        with LiveBytes(model.parameters()) as live, way:
            before = live.live
            loss = next_token_loss(model, tokens, tokens)
            kept.append(live.live - before)
            del loss
    assert kept[1] < kept[0] / 4
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("share", "place"), [(1.99, "cpu"), (2.0, "meta")])
def test_sums_wait_on_the_device_where_half_of_what_is_free_takes_them(
    share: float, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = [linear for _, linear in sparse_linears(pruned_model().to("meta"))]
    needed = sum(4 * linear.weight.numel() for linear in linears)
    monkeypatch.setattr(weight_gradients, "free_bytes", lambda device: int(share * needed))
    assert weight_gradients.place_of_sums(linears).type == place


def test_in_one_pass_a_gradient_is_gone_before_the_next_comes(tmp_path: Path) -> None:
    """No more than one weight's bytes, and the buffers of a backward pass."""
    model, examples = pruned_model(), bench_for(tmp_path).train.first(1)
    model.requires_grad_(False)
    linears = dict(sparse_linears(model))
    peaks = []
    for micro_batch, rows in ((None, [0]), (1, [0, 0])):  # the second adds up
        how = Backward(
            micro_batch=micro_batch, activation_checkpointing=True, mixed=False, for_init=""
        )
        with LiveBytes(model.parameters()) as live:
            before = live.live
            take_gradients(model, linears, examples, [rows], how, lambda name, gradient: None)
        peaks.append(live.peak - before)
    sums = sum(4 * linear.weight.numel() for linear in linears.values())
    assert peaks[1] > sums
    assert peaks[0] < peaks[1] - sums / 2


def test_a_start_at_gradients_is_the_same_in_micro_batches_and_recomputed(tmp_path: Path) -> None:
    chosen = []
    for micro_batch, recomputed in ((None, False), (3, True)):
        model = pruned_model()
        bench = dataclasses.replace(
            bench_for(tmp_path, micro_batch=micro_batch), activation_checkpointing=recomputed
        )
        counts = {name: 40 for name, _ in sparse_linears(model)}
        places = gradient_positions(model, bench, all_places, counts, windows=8)
        chosen.append({name: set(positions.tolist()) for name, positions in places.items()})
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_gradients_are_the_mean_over_batches_of_the_gradient_over_all_labels(
    micro_batch: int | None,
) -> None:
    """Windows have 15, 10, 5 and no labels, so that their own means would weigh too much."""
    model, tokens = pruned_model().requires_grad_(False), windows(4)
    labels = tokens.clone()
    for row in range(4):
        labels[row, : 1 + 5 * row] = UNLABELLED
    linears, batches = dict(sparse_linears(model)), [[0, 2], [1, 3]]
    wanted = {name: torch.zeros(linear.weight.shape) for name, linear in linears.items()}
    for rows in batches:
        for linear in linears.values():
            linear.weight.requires_grad_(True)
            linear.weight.grad = None
        logits = model(input_ids=tokens[rows], use_cache=False).logits[:, :-1].flatten(0, 1)
        F.cross_entropy(logits, labels[rows][:, 1:].flatten(), ignore_index=UNLABELLED).backward()
        for name, linear in linears.items():
            wanted[name] += linear.weight.grad / len(batches)
            linear.weight.grad = None
    taken: dict[str, torch.Tensor] = {}
    how = Backward(
        micro_batch=micro_batch, activation_checkpointing=False, mixed=False, for_init=""
    )
    take_gradients(model, linears, Examples(tokens, labels), batches, how, taken.__setitem__)
    for name, gradient in taken.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-4, atol=1e-8), name
    assert taken.keys() == wanted.keys()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model.requires_grad_(True)  # no hook is left that would take these
    next_token_loss(model, tokens, labels).backward()
    assert all(linear.weight.grad is not None for linear in linears.values())


def half_model(shrunk: float, head: float) -> PreTrainedModel:
    """A float16 model whose weights are divided by `shrunk`, those of its head times `head`."""
    model = pruned_model()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(head if "lm_head" in name else 1 / shrunk)
    return model.half()


def taken_gradients(model: PreTrainedModel, micro_batch: int | None) -> dict[str, torch.Tensor]:
    taken: dict[str, torch.Tensor] = {}
    how = Backward(
        micro_batch=micro_batch, activation_checkpointing=False, mixed=False, for_init="init=x"
    )
    linears = dict(sparse_linears(model))
    rows = [range(4)]
    take_gradients(model, linears, Examples.of(windows(4)), rows, how, taken.__setitem__)
    return taken


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize(
    ("shrunk", "head", "overflow"),
    [(16, 1 / 16, False), (1, 16, True)],
    ids=["they would underflow", "some overflow at the first scale"],
)
def test_gradients_in_float16_are_those_of_float32(
    shrunk: float,
    head: float,
    overflow: bool,
    micro_batch: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scales: list[float] = []
    run = weight_gradients._backward
    monkeypatch.setattr(
        weight_gradients, "_backward", lambda *given: (scales.append(given[-1]), run(*given))
    )
    half = taken_gradients(half_model(shrunk, head), micro_batch)
    assert (len(set(scales)) > 1) == overflow
    for name, wanted in taken_gradients(half_model(shrunk, head).float(), micro_batch).items():
        # a rounding is 2^-11, and a gradient here has passed about ten
        assert float((half[name] - wanted).norm()) < 2**-7 * float(wanted.norm()), name


def test_a_gradient_beyond_float16_is_refused_in_one_line() -> None:
    with pytest.raises(FloatingPointError, match=r"gradient of .*, which method.init=x") as refused:
        taken_gradients(half_model(2**8, 2**15), None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("asked", [False, True])
def test_blocks_are_recomputed_for_a_start_where_that_is_asked(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[bool] = []

    @contextmanager
    def watched(model: torch.nn.Module) -> Iterator[None]:
        recomputed.append(True)
        yield

    monkeypatch.setattr(weight_gradients, "recomputing_blocks", watched)
    bench = dataclasses.replace(bench_for(tmp_path), activation_checkpointing=asked)
    method_of("lors", "method.rank=2").attach(pruned_model(), bench)
    assert recomputed == [True] * asked

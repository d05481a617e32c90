"""Dense gradients before training: what is held meanwhile, and that splitting changes nothing."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, pruned_model
from support.families import random_model

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

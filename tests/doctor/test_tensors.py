"""Operators on tensors without values, and what a ledger counts of them."""

from __future__ import annotations

import pytest
import torch
from support.families import random_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sparsemend.doctor.ledger import HEAP, Ledger
from sparsemend.doctor.tensors import DryTensors
from sparsemend.instruments import LiveBytes
from sparsemend.sparse.packing import pack, unpack
from sparsemend.sparse.selection import kth_lowest, lowest_of_all
from sparsemend.training.batches import next_token_loss


@pytest.fixture
def dry() -> DryTensors:
    return DryTensors(Ledger(), density=0.4)


def test_integers_keep_their_values_and_weights_have_none(dry: DryTensors) -> None:
    with dry.running():
        tokens = torch.arange(5) * 2
        weight = torch.zeros(3, 3)
        assert tokens.tolist() == [0, 2, 4, 6, 8]
        assert isinstance(weight, FakeTensor)
        assert not isinstance(tokens, FakeTensor)


def test_a_large_tensor_takes_no_memory(dry: DryTensors) -> None:
    with dry.running():
        product = torch.empty(2**20, 2**20) @ torch.empty(2**20, 8)
        assert product.shape == (2**20, 8)
    assert max(dry.ledger.peaks.values()) > 4 * 2**40


def test_a_support_keeps_its_share(dry: DryTensors) -> None:
    with dry.running():
        keep = torch.empty(10, 100) != 0
        assert int(keep.count_nonzero()) == 400
        assert int((~keep).count_nonzero()) == 600
        assert torch.empty(10, 100)[keep].shape == (400,)
        assert keep.nonzero().shape == (400, 2)


def test_a_support_holds_most_of_a_smaller_one(dry: DryTensors) -> None:
    with dry.running():
        first, later = torch.empty(10, 100) != 0, torch.empty(10, 100) != 0
        assert int((first & later).count_nonzero()) == 400
        assert int((~first & ~later).count_nonzero()) == 600
        assert len((first & ~later).nonzero()) <= 1


def test_what_is_chosen_by_rank_is_as_many_as_asked_for(dry: DryTensors) -> None:
    with dry.running():
        lowest = lowest_of_all(torch.empty(10, 100), 30)
        assert lowest.view(-1).nonzero().shape == (30, 1)
        assert int((~lowest).count_nonzero()) == 970


def test_nothing_escaped_and_everything_is_finite(dry: DryTensors) -> None:
    with dry.running():
        weight = torch.empty(10, 10)
        assert torch.isfinite(weight).all()
        assert not (weight != weight).any()
        assert int(weight.masked_fill(weight != 0, 0).count_nonzero()) == 0


def test_packing_and_selection_know_their_results(dry: DryTensors) -> None:
    with dry.running():
        score = torch.empty(4, 20)
        assert kth_lowest(score, 3).shape == (4, 1)
        packed = pack(score > 0)
        assert (packed.shape, packed.dtype) == ((4, 3), torch.uint8)
        assert unpack(packed, 20).shape == (4, 20)


def test_an_operand_that_is_cast_first_counts_on_the_host(dry: DryTensors) -> None:
    size = 2 * HEAP  # elements; 4 bytes each of the weight, 1 of the mask, 4 of the mask cast
    with dry.running():
        weight, mask = torch.empty(size), torch.empty(size) != 0
        dry.ledger.peaks.clear()
        weight.view(torch.int32).mul_(mask)
    assert max(dry.ledger.peaks.values()) == (4 + 1 + 4) * size


def test_a_sum_of_another_dtype_casts_what_it_adds(dry: DryTensors) -> None:
    size = 2 * HEAP
    with dry.running():
        mask = torch.empty(size) != 0
        dry.ledger.peaks.clear()
        mask.sum()
    assert max(dry.ledger.peaks.values()) == pytest.approx((1 + 8) * size, rel=1e-6)


def test_what_was_freed_counts_no_more_but_small_pieces_stay_in_the_heap(dry: DryTensors) -> None:
    ledger = dry.ledger
    with dry.running():
        large = torch.empty(2 * HEAP, dtype=torch.uint8).float()
        small = torch.empty(1024)
        assert ledger.held_bytes("cpu") == 8 * HEAP + 4096
        del large, small
    assert ledger.live["cpu"] == 0
    assert ledger.held_bytes("cpu") == 4096
    with ledger.during("the next stage"):  # before which a run returns what it freed
        assert ledger.held_bytes("cpu") == 0


def test_a_dry_step_peaks_where_a_real_one_does(dry: DryTensors) -> None:
    """One forward and backward, LiveBytes on real values against the ledger without them."""
    tokens = torch.randint(96, (2, 24))

    def peak_of_step(model: nn.Module) -> None:
        model.requires_grad_(True)
        next_token_loss(model, tokens, tokens).backward()

    real = random_model("llama")
    with LiveBytes([*real.parameters(), *real.buffers()]) as live:
        peak_of_step(real)
    with dry.running():
        model = random_model("llama")
        dry.ledger.peaks.clear()
        with dry.ledger.during("step"):
            peak_of_step(model)
    dry_peak = max(dry.ledger.peaks.values())
    assert live.peak == pytest.approx(dry_peak, rel=0.05)

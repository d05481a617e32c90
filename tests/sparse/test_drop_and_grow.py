"""Mask updates by hand: what leaves, what enters, what stays."""

import pytest
import torch
from torch import Tensor

from sparsemend.sparse.drop_and_grow import (
    at_most_per_group,
    exchange,
    forget_,
    highest,
    lowest,
    moved_support,
)
from sparsemend.sparse.drop_fraction import drop_fraction


def test_lowest_and_highest_order_and_break_ties_by_index() -> None:
    score = torch.tensor([2.0, 1.0, 3.0, 1.0, 3.0])
    assert lowest(score, 3).tolist() == [1, 3, 0]
    assert highest(score, 3).tolist() == [2, 4, 0]


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        lowest(torch.tensor([1.0, torch.nan]), 1)


def test_the_worst_slot_goes_to_the_best_candidate() -> None:
    """Slots 1 and 2 (positions 4 and 7) drop; 4 is chosen again and stays; 2 takes 7's place."""
    move = exchange(
        torch.tensor([1, 4, 7]),
        torch.tensor([0.9, 0.1, 0.2]),
        torch.tensor([1, 4, 2, 3]),
        torch.tensor([9.0, 5.0, 4.0, 1.0]),
        count=2,
        size=10,
    )
    assert move.slots.tolist() == [2]
    assert move.positions.tolist() == [2]
    assert move.returning.tolist() == [1]


def test_slots_without_a_partner_stay() -> None:
    held, drop = torch.tensor([0, 1, 2]), torch.tensor([3.0, 1.0, 2.0])
    move = exchange(held, drop, torch.tensor([5]), torch.tensor([1.0]), count=2, size=6)
    assert move.slots.tolist() == [1]
    assert move.positions.tolist() == [5]


def test_rigl_drops_small_weights_and_grows_large_gradients() -> None:
    keep = torch.tensor([[True, True, False], [True, False, False]])
    weight = torch.tensor([[0.1, 2.0, 0.0], [0.5, 0.0, 0.0]])
    gradient = torch.tensor([[0.0, 9.0, 1.0], [0.0, 3.0, 2.0]])
    new, moved = moved_support(keep, weight.abs(), gradient, 2)
    assert new.tolist() == [[False, True, False], [False, True, True]]
    assert moved.tolist() == [[True, False, False], [True, True, True]]


def test_a_dropped_weight_may_win_its_place_back() -> None:
    keep = torch.tensor([[True, True, False]])
    new, moved = moved_support(
        keep, torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 0, 1]]), 1
    )
    assert new.tolist() == keep.tolist()
    assert not moved.any()


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randint(1, 12, (2,), generator=generator).tolist()
    keep = torch.rand(shape, generator=generator) < torch.rand(1, generator=generator)
    scores = torch.rand(2, *shape, generator=generator)
    count = int(torch.randint(0, int(keep.sum()) + 1, (1,), generator=generator))
    return keep, scores[0], scores[1], count


def test_a_support_keeps_its_size_and_what_it_should_hold() -> None:
    """Against a rule written with sorted lists."""
    for seed in range(100):
        keep, drop, grow, count = random_case(seed)
        new, _ = moved_support(keep, drop, grow, count)
        assert int(new.sum()) == int(keep.sum())
        flat = keep.view(-1).tolist()
        held = sorted((i for i, k in enumerate(flat) if k), key=lambda i: float(drop.view(-1)[i]))
        stays = set(held[count:])
        free = sorted(
            (i for i in range(len(flat)) if i not in stays), key=lambda i: -float(grow.view(-1)[i])
        )
        assert set(new.view(-1).nonzero().view(-1).tolist()) == stays | set(free[:count])


def test_at_most_so_many_of_a_group_come_first() -> None:
    positions = torch.tensor([5, 0, 4, 1, 6, 2])  # groups of four: 1 0 1 0 1 0
    assert at_most_per_group(positions, 4, 2).tolist() == [True, True, True, True, False, False]


def test_forgetting_zeroes_only_tensors_of_the_parameters_shape() -> None:
    state = {"exp_avg": torch.ones(3), "rows": torch.ones(3, 1), "step": torch.tensor(4.0)}
    forget_(state, torch.Size([3]), torch.tensor([1]))
    assert state["exp_avg"].tolist() == [1, 0, 1]
    assert state["rows"].all()
    assert state["step"] == 4


def test_fractions_fall_to_nothing() -> None:
    assert drop_fraction(0.2, "linear", 0.25) == pytest.approx(0.15)
    assert drop_fraction(0.2, "cosine", 0.5) == pytest.approx(0.1)
    for decay in ("linear", "cosine"):
        assert drop_fraction(0.2, decay, 0.0) == pytest.approx(0.2)
        assert drop_fraction(0.2, decay, 1.0) == pytest.approx(0.0)

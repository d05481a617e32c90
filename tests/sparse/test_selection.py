"""Selection by score: against stable sorts, ties, groups of M, what is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import (
    checked_finite,
    kth_lowest,
    lowest_of_all,
    lowest_of_layer,
    lowest_over_rows,
    lowest_per_group,
    lowest_per_row,
    rank_in_group,
)


def tied_score(rows: int, columns: int) -> Tensor:
    """Six distinct values, so that every row has many ties."""
    return torch.randint(0, 6, (rows, columns), generator=torch.Generator().manual_seed(2)).float()


def lowest_by_stable_sort(score: Tensor, count: int) -> Tensor:
    first = score.sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, first, True)


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13, 20])
def test_lowest_per_row_is_a_stable_sort(count: int) -> None:
    score = tied_score(9, 13)
    assert torch.equal(lowest_per_row(score, count), lowest_by_stable_sort(score, count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kth_lowest_equals_sorting(dtype: torch.dtype) -> None:
    score = torch.randn(6, 11, generator=torch.Generator().manual_seed(3)).to(dtype)
    for count in (1, 4, 11):
        expected = score.sort(dim=1).values[:, count - 1 : count]
        assert torch.equal(kth_lowest(score, count), expected.to(kth_lowest(score, count).dtype))


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("columns", [32, 38])
def test_every_group_loses_its_lowest_and_a_short_one_as_many(size: int, columns: int) -> None:
    score = tied_score(6, columns)
    for kept in range(size + 1):
        removed = lowest_per_group(score, Pattern(kept, size))
        parts = [
            lowest_by_stable_sort(score[:, start : start + size], size - kept)
            for start in range(0, columns, size)
        ]
        assert torch.equal(removed, torch.cat(parts, dim=1))


def test_groups_may_come_transposed() -> None:
    score = tied_score(16, 6)
    expected = lowest_per_group(score.T.contiguous(), Pattern(1, 4))
    assert torch.equal(lowest_per_group(score.T, Pattern(1, 4)), expected)


def test_ties_rank_by_index() -> None:
    assert rank_in_group(torch.tensor([[2.0, 1.0, 2.0, 1.0]])).tolist() == [[2, 0, 3, 1]]


def test_a_layer_loses_all_up_to_its_threshold() -> None:
    score = torch.tensor([[5.0, 1.0, 2.0], [2.0, 4.0, 3.0]])
    # int(6 * 0.34) = 2: the third lowest is 2, and there are two of it
    expected = [[False, True, True], [True, False, False]]
    assert lowest_of_layer(score, 0.34).tolist() == expected
    assert not lowest_of_layer(score, 0).any()
    assert lowest_of_layer(score, 1).all()


def test_scores_that_are_not_finite_are_counted() -> None:
    score = torch.tensor([[1.0, torch.nan], [-torch.inf, 0.0]])
    with pytest.raises(ValueError, match="2 of 4"):
        checked_finite(score)


@pytest.mark.parametrize("count", [0, 1, 7, 12, 13, 59, 60])
def test_the_lowest_over_rows_take_single_weights_where_they_cost_least(count: int) -> None:
    score = torch.rand(5, 12, generator=torch.Generator().manual_seed(3))
    chosen = lowest_over_rows(score, count)
    assert int(chosen.sum()) == count
    each, further = divmod(count, 5)
    ascending = score.sort(dim=1).values
    expected = [set(row[:each].tolist()) for row in ascending]
    following = sorted(range(5), key=lambda row: float(ascending[row, each]) if each < 12 else 0.0)
    for row in following[:further]:
        expected[row].add(float(ascending[row, each]))
    assert [set(score[row][chosen[row]].tolist()) for row in range(5)] == expected


def test_of_all_tied_scores_the_first_go() -> None:
    score = torch.ones(2, 3)
    assert lowest_over_rows(score, 3).tolist() == [[True, True, False], [True, False, False]]
    assert lowest_of_all(score, 4).tolist() == [[True, True, True], [True, False, False]]

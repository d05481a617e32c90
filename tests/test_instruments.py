"""The instruments on work whose cost is known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsemend.instruments import LiveBytes, flops, peak_bytes, saved_bytes, time_and_peak

CPU = torch.device("cpu")
FLOAT = 4


def test_saved_bytes_are_those_of_the_one_result_that_two_operators_keep() -> None:
    x, weight = torch.ones(10, 3, requires_grad=True), nn.Parameter(torch.ones(10, 3))
    # exp keeps its result, the product keeps that result again (once) and the weight (living)
    assert saved_bytes(lambda: x.exp() * weight, living=[weight], linears=[]) == 30 * FLOAT
    assert saved_bytes(lambda: x.exp() * weight, living=[], linears=[]) == 60 * FLOAT


def test_views_of_one_storage_are_saved_once() -> None:
    x = torch.ones(8, requires_grad=True)

    def forward() -> Tensor:
        kept = x.exp()
        return kept.view(2, 4).sin() + kept.view(4, 2).sin().view(2, 4)

    assert saved_bytes(forward, living=[], linears=[]) == 8 * FLOAT


def test_inputs_of_the_named_linears_are_not_counted() -> None:
    first, second = nn.Linear(6, 5), nn.Linear(5, 4)
    living = [*first.parameters(), *second.parameters()]
    x = torch.ones(7, 6)

    def forward() -> Tensor:
        return second(first(x))

    assert saved_bytes(forward, living=living, linears=[]) == 7 * (6 + 5) * FLOAT
    assert saved_bytes(forward, living=living, linears=[second]) == 7 * 6 * FLOAT
    assert saved_bytes(forward, living=living, linears=[first, second]) == 0


def test_the_hooks_are_gone_also_after_an_error() -> None:
    linear = nn.Linear(2, 2)

    def forward() -> Tensor:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        saved_bytes(forward, living=[], linears=[linear])
    assert not linear._forward_pre_hooks


@pytest.mark.parametrize(("trained", "backward"), [(False, 2), (True, 4)])
def test_flops_of_a_linear_are_two_per_token_and_weight_and_direction(
    trained: bool, backward: int
) -> None:
    tokens, weights = 7, 6 * 5
    linear = nn.Linear(6, 5, bias=False).requires_grad_(trained)
    x = torch.ones(tokens, 6, requires_grad=True)
    assert flops(lambda: linear(x).sum()) == (2 * tokens * weights, backward * tokens * weights)


def test_recomputation_counts_as_backward() -> None:
    tokens, weights = 7, 6 * 5
    linear = nn.Linear(6, 5, bias=False).requires_grad_(False)
    x = torch.ones(tokens, 6, requires_grad=True)

    def forward() -> Tensor:
        # without the square nothing of the linear would have to be there again for backward
        output = checkpoint(lambda t: linear(t).square(), x, use_reentrant=False)
        assert isinstance(output, Tensor)
        return output.sum()

    assert flops(forward) == (2 * tokens * weights, 4 * tokens * weights)


def test_the_peak_counts_what_lives_together_and_not_what_came_before() -> None:
    with LiveBytes([]) as live:
        first = torch.zeros(100)
        second = first + 1
        del first
        third = second + 1
        del second
        assert (live.live, live.peak) == (100 * FLOAT, 200 * FLOAT)
        del third
        assert (live.live, live.peak) == (0, 200 * FLOAT)


def test_what_only_autograd_holds_lives() -> None:
    x = torch.ones(100, requires_grad=True)
    with LiveBytes([x]) as live:
        result = x.exp().exp()  # the inner result has no name
        assert live.live == 300 * FLOAT
        result.sum().backward()
        del result
        assert live.live == 200 * FLOAT  # x and its gradient


def test_an_operation_in_place_and_a_view_take_no_bytes() -> None:
    x = torch.zeros(100)
    with LiveBytes([x, x.view(10, 10)]) as live:
        x.add_(1).view(10, 10).mul_(2)
    assert live.peak == 100 * FLOAT


def test_the_peak_of_work_includes_what_it_holds() -> None:
    x = torch.zeros(100)
    assert peak_bytes(lambda: x + 1, [x], CPU) == 200 * FLOAT


def test_timed_runs_the_work_once_and_times_it() -> None:
    calls: list[int] = []
    seconds, peak = time_and_peak(lambda: calls.append(1), CPU)
    assert calls == [1]
    assert seconds > 0
    assert peak > 0


def test_a_product_with_a_sparse_matrix_counts_its_entries() -> None:
    """Two of six entries, five columns; then the two products of a sampled one, inner size four."""
    sparse = torch.tensor([[1.0, 0, 0], [0, 0, 2.0]]).to_sparse_csr()
    x, outer = torch.ones(3, 5), (torch.ones(2, 4), torch.ones(4, 3))
    one = torch.zeros((), requires_grad=True)
    assert flops(lambda: (sparse @ x).sum() + one)[0] == 2 * 2 * 5
    sampled = flops(lambda: torch.sparse.sampled_addmm(sparse, *outer).values().sum() + one)[0]
    assert sampled == 2 * 2 * 4


def test_a_sparse_matrix_is_alive_with_its_three_parts() -> None:
    dense = torch.eye(4)
    with LiveBytes([]) as live:
        sparse = dense.to_sparse_csr()
        parts = (sparse.crow_indices(), sparse.col_indices(), sparse.values())
        assert live.live >= sum(part.numel() * part.element_size() for part in parts)

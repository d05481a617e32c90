"""Selection by counting bits, against a sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsemend.sparse.histogram import kth_by_counting, ranked_bits


def drawn(seed: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 3.5, -3.5, 3.5])


@pytest.mark.parametrize(
    "values",
    [drawn(0, 501), drawn(1, 64).round(), drawn(2, 33).bfloat16().float(), SPECIAL, torch.ones(7)],
    ids=["any", "tied", "bfloat16", "special", "equal"],
)
def test_every_rank_is_that_of_a_sort(values: Tensor) -> None:
    ascending = values.sort().values
    for count in range(1, len(values) + 1):
        assert kth_by_counting(values, count) == ascending[count - 1]


def test_nan_of_either_sign_is_above_all() -> None:
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    values = torch.cat([torch.tensor([torch.nan, torch.inf, -2.0]), negative])
    assert [float(kth_by_counting(values, count)) for count in (1, 2)] == [-2.0, torch.inf]
    assert kth_by_counting(values, 3).isnan()


def test_bits_rank_as_values_do() -> None:
    values = torch.cat([drawn(3, 200), SPECIAL])
    bits = ranked_bits(values)
    assert torch.equal(
        bits.unsqueeze(0) < bits.unsqueeze(1), values.unsqueeze(0) < values.unsqueeze(1)
    )

"""The Gram matrix of hidden states over sequences."""

from __future__ import annotations

import torch

from sparsemend.sparsity_schedule.rates.similarity import gram


def test_several_states_of_a_token_lie_side_by_side_in_the_row_of_its_sequence() -> None:
    draw = torch.Generator().manual_seed(0)
    windows = [torch.randn(2, 1, 5, 3, generator=draw) for _ in range(4)]  # (S, B, T, D)
    rows = torch.stack([window[:, 0].flatten() for window in windows]).double()
    torch.testing.assert_close(gram(windows), rows @ rows.T, rtol=1e-5, atol=1e-6)

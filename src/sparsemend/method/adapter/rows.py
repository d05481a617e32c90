"""Inputs as rows, outside an autograd function.

An output that a function returns as a view must not be changed in place, which Falcon (it adds the
residual) and OLMo (it clips queries) do; the view of an output may.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def by_rows(product: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """(..., O) from inputs (..., I) by a product that takes rows (T, I) to (T, O)."""
    output = product(input.reshape(-1, input.shape[-1]))
    return output.view(*input.shape[:-1], output.shape[-1])

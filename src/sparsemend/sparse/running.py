"""Running sums in one order whatever the device."""

from __future__ import annotations

from torch import Tensor


def running_sums(values: Tensor, dim: int) -> Tensor:
    """`values.cumsum(dim)`, summed on the host.

    On CUDA a cumsum of floats has no fixed order, and is refused where torch is to be
    deterministic.
    """
    return values.cpu().cumsum(dim).to(values.device)

"""The pattern that Erdos-Renyi rates cannot have (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.sparsity_schedule.rates.options import check_unstructured


def check(asked: Asked) -> None:
    """Raise ValueError with a pattern."""
    check_unstructured(asked)

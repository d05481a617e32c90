"""The bound of ATP's common difference (no torch)."""

from __future__ import annotations

from sparsemend.checkpoint.prunable_shapes import weights_per_block
from sparsemend.config.asked import Asked
from sparsemend.sparsity_schedule.rates.options import is_number
from sparsemend.sparsity_schedule.rates.progression import check_difference


def check(asked: Asked) -> None:
    """Raise ValueError where the common difference is no number, or beyond its bound."""
    difference, config = asked.section.common_difference, asked.model.config
    if not is_number(difference):
        raise ValueError(f"sparsity_schedule.common_difference={difference} is not a number")
    sparsity, most = asked.cfg.sparsity, asked.pattern.largest_rate
    if asked.linears:
        weights = weights_per_block(asked.linears)
        check_difference(difference, sparsity, len(weights), weights, most=most)
    elif config is not None and config.blocks is not None:
        check_difference(difference, sparsity, config.blocks, most=most)

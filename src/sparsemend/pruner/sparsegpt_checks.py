"""The block of columns that SparseGPT needs for a pattern (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked


def check(asked: Asked) -> None:
    """Raise ValueError where a block of columns would split a group of the pattern."""
    block_size, group_size = asked.section.block_size, asked.pattern.group_size
    if block_size and group_size and block_size % group_size:
        raise ValueError(
            f"pruner.block_size={block_size} is not a multiple of {group_size} (pattern "
            f"{asked.pattern}); "
            f"set pruner.block_size={max(1, round(block_size / group_size)) * group_size}"
        )

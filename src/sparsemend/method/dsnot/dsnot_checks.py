"""The rounding that DSnoT's start undoes (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked


def check(asked: Asked) -> None:
    """Raise ValueError where exact counts would be pruned again by row."""
    exact = asked.cfg.rounding == "exact_budget" and not asked.pruned_already
    if exact and asked.section.start == "pruner":
        raise ValueError(
            "rounding=exact_budget is undone by method.start=pruner, which prunes again by row; "
            "use method.start=given or rounding=pruner"
        )

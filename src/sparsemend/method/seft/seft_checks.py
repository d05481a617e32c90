"""What SEFT's settings demand of each other and of the pattern (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.method.adapter.delta.limits import check_evolution
from sparsemend.method.seft.pattern import check_within_group


def check(asked: Asked) -> None:
    """Raise ValueError where deltas could not evolve within their budget."""
    method = asked.section
    check_within_group(method, asked.pattern)
    check_evolution(asked)
    unbounded = asked.pattern.unstructured and method.grow_scope == "all" and not method.adapt
    if unbounded and asked.cfg.export:
        raise ValueError(
            "method.adapt=false with method.grow_scope=all ends denser than sparsity="
            f"{asked.cfg.sparsity}, a control to measure and not to export; set "
            "method.adapt=true, method.grow_scope=active or export=false"
        )

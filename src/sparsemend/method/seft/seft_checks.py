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
    scopes = (method.grow_scope, method.init_scope)
    if method.adapt is False and scopes != ("active", "active"):
        raise ValueError(
            "method.adapt=false prunes nothing for what grows on pruned positions; set "
            "method.grow_scope=active and method.init_scope=active too"
        )

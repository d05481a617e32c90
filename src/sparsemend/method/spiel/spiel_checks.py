"""What SpIEL's rounds and its pruning back demand (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.method.adapter.delta.limits import check_evolution


def check(asked: Asked) -> None:
    """Raise ValueError where nothing could prune back, or deltas could not evolve."""
    if asked.section.prune_back == "pruner" and asked.pruned_already:
        raise ValueError(
            "method.prune_back=pruner prunes as the run did, but pruner=existing pruned nothing; "
            "set method.prune_back=magnitude"
        )
    check_evolution(asked)

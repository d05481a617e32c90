"""When a dense support can move (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.sparse.drop_fraction import DECAYS


def check(asked: Asked) -> None:
    """A support that is to move does so at least once, by a real share, and breaks no pattern."""
    method = asked.section
    if method.mask_update == "none":
        return
    last = int(method.update_until * method.max_steps)
    if not 0 < method.update_interval <= last:
        raise ValueError(
            f"method.update_interval={method.update_interval} is not in [1, method.update_until * "
            f"method.max_steps = {last}], so the support would never move; set "
            f"method.update_interval={max(1, last)} or lower, or train longer"
        )
    if not 0 < method.initial_drop_rate <= 1:
        raise ValueError(
            f"method.initial_drop_rate={method.initial_drop_rate} is not in (0, 1]; it is the "
            "fraction of kept weights that a move replaces, for example 0.3"
        )
    if method.drop_schedule not in DECAYS:
        raise ValueError(
            f"method.drop_schedule={method.drop_schedule} is not one of: {', '.join(DECAYS)}"
        )
    if not asked.pattern.unstructured:
        raise ValueError(
            f"method.mask_update={method.mask_update} moves weights anywhere in a linear, which "
            f"breaks pattern {asked.pattern}; set method.mask_update=none"
        )

"""What growth inside the groups of an N:M pattern asks of SEFT's settings (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.sparse.pattern import Pattern

# what growth inside the groups of an N:M pattern compares weights by
WITHIN_GROUP = {
    "sensitivity_gradient": "mean",
    "refill": False,
    "adapt_scope": "layer",
    "adapt_candidates": "all",
}


def check_within_group(method: Mapping[str, Any], pattern: Pattern) -> None:
    """Growth of sparse deltas beyond the support inside groups of M (SEFT), where it is asked for.

    Raises ValueError on settings that could not hold the pattern.
    """
    if pattern.unstructured or method.get("pattern_growth") != "within_group":
        return
    if method["grow_scope"] != "all":
        return
    if pattern.mixed:
        raise ValueError(
            f"method.pattern_growth=within_group needs one N:M, not {pattern}; set "
            "method.pattern_growth=active"
        )
    odd = [name for name, value in WITHIN_GROUP.items() if method[name] != value]
    if odd:
        raise ValueError(
            "method.pattern_growth=within_group compares all weights of a group; set "
            f"method.{odd[0]}={str(WITHIN_GROUP[odd[0]]).lower()}"
        )

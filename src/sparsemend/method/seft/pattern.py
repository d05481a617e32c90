"""The settings that SEFT needs to grow inside the groups of an N:M pattern (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemend.sparse.pattern import Pattern

# settings by which growth inside the groups of an N:M pattern compares weights
WITHIN_GROUP: Mapping[str, tuple[Any, ...]] = {
    "sensitivity_gradient": ("rms", "mean"),
    "refill": (False,),
    "adapt": (True,),
    "adapt_scope": ("layer",),
    "adapt_candidates": ("all",),
}


def check_within_group(method: Mapping[str, Any], pattern: Pattern) -> None:
    """Raise ValueError on settings with which growth inside groups of M could not hold the pattern.

    They matter only if SEFT's deltas are to grow beyond the support inside groups of M.
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
    odd = [name for name, values in WITHIN_GROUP.items() if method[name] not in values]
    if odd:
        raise ValueError(
            "method.pattern_growth=within_group compares all weights of a group; set "
            f"method.{odd[0]}={str(WITHIN_GROUP[odd[0]][0]).lower()}"
        )

"""The decay, over a fit, of the share that a mask update moves (no torch)."""

from __future__ import annotations

import math

DECAYS = ("linear", "cosine")


def drop_fraction(initial: float, decay: str, progress: float) -> float:
    """initial (1 - t/T) or initial (1 + cos(pi t/T)) / 2, with progress t/T in [0, 1]."""
    if decay == "cosine":
        return initial * (1 + math.cos(math.pi * progress)) / 2
    return initial * (1 - progress)

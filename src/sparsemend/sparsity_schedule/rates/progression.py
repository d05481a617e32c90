"""The arithmetic of ATP, free of torch: rates, bound, and N of a mixed N:M pattern.

Huang et al. 2025, arXiv 2502.14770, eq. 10 and the mixed N:8 setting of its appendix.  The paper
has blocks of one size; centre and bound for blocks of several sizes (hybrid models) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard


def bound(
    sparsity: float, blocks: int, weights: Sequence[int] | None = None, *, falling: bool = False
) -> float:
    """Largest |common difference| that keeps every block rate in [0, 1].

    weights: parameters per block; where they differ, the rates pivot about the weighted centre c,

        d (L - 1 - c) <= 1 - S,   d c <= S     and with c and L - 1 - c swapped if `falling` (d < 0)

    and the two directions differ; with equal blocks, c = (L - 1) / 2, they are one bound.
    """
    if blocks < 2:
        return math.inf  # one block has no difference
    if not _differ(weights):
        return min(2 * sparsity / (blocks - 1), 2 * (1 - sparsity) / (blocks - 1))
    before = _centre(weights)
    after = blocks - 1 - before
    up, down = (before, after) if falling else (after, before)  # steps above and below the mean
    return min((1 - sparsity) / up, sparsity / down)


def check_difference(
    difference: float, sparsity: float, blocks: int, weights: Sequence[int] | None = None
) -> None:
    """Raise ValueError beyond the bound of the difference's direction (equality is legal).

    weights: as those of `bound`.
    """
    limit = bound(sparsity, blocks, weights, falling=difference < 0)
    if abs(difference) <= limit * (1 + 1e-9):
        return
    if not _differ(weights):
        raise ValueError(
            f"common_difference {difference} exceeds 2*min(s, 1-s)/(L-1) = {limit:.4g} "
            f"for L={blocks}, s={sparsity}; choose a value in [-{limit:.4g}, {limit:.4g}]"
        )
    least, most = (bound(sparsity, blocks, weights, falling=falling) for falling in (True, False))
    raise ValueError(
        f"common_difference {difference} takes a block's rate out of [0, 1] for L={blocks}, "
        f"s={sparsity} and blocks of different size, whose weighted centre is block "
        f"{_centre(weights):.4g} of 0..{blocks - 1}; choose a value in [-{least:.4g}, {most:.4g}]"
    )


def _differ(weights: Sequence[int] | None) -> TypeGuard[Sequence[int]]:
    return weights is not None and len(set(weights)) > 1


def _centre(weights: Sequence[int]) -> float:
    """The weighted mean of the block numbers 0..L-1."""
    return sum(i * w for i, w in enumerate(weights)) / sum(weights)


def rates(
    difference: float, sparsity: float, blocks: int, weights: Sequence[int] | None = None
) -> list[float]:
    """s_1..s_L in float64, multiplied (not accumulated) as in the reference code.

    weights: parameters per block; where they differ, the first rate is shifted so that the
    weighted mean is `sparsity`.  Raises ValueError where a rate leaves [0, 1].
    """
    first = sparsity - (difference * (blocks - 1)) / 2
    if _differ(weights):
        first = sparsity - difference * _centre(weights)
    values = [first + i * difference for i in range(blocks)]
    for index, value in enumerate(values):
        if not -1e-9 <= value <= 1 + 1e-9:
            raise ValueError(
                f"common_difference {difference} gives block {index} the sparsity {value:.4f}, "
                "which is not in [0, 1]; lower it"
            )
    return [min(max(value, 0.0), 1.0) for value in values]


def mixed_kept(block_rates: Sequence[float], group_size: int, sparsity: float) -> list[int]:
    """N per block for a mixed N:M pattern, by largest remainder.

    The N sum to round(L * M * (1 - s)); ties go to the earlier block; each is clamped to 1..M.
    """
    ideal = [group_size * (1 - rate) for rate in block_rates]
    # a remainder within rounding error of a whole number is that number
    kept = [min(max(math.floor(value + 1e-9), 1), group_size) for value in ideal]
    target = round(len(ideal) * group_size * (1 - sparsity))
    if not len(ideal) <= target <= len(ideal) * group_size:
        raise ValueError(
            f"sparsity {sparsity} asks {len(ideal)} blocks to keep {target} of every {group_size} "
            f"inputs in all, which is less than one each; lower it to {1 - 1 / group_size:g}"
        )
    while (missing := target - sum(kept)) != 0:
        step = 1 if missing > 0 else -1
        free = [i for i, n in enumerate(kept) if 1 <= n + step <= group_size]
        chosen = max(free, key=lambda i: (round(step * (ideal[i] - kept[i]), 9), -step * i))
        kept[chosen] += step
    return kept

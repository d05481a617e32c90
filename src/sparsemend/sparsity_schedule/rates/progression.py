"""The arithmetic of ATP, free of torch: rates, bound, and N of a mixed N:M pattern.

Huang et al. 2025, arXiv 2502.14770, eq. 10 and the mixed N:8 setting of its appendix.  The paper
has blocks of one size; centre and bound for blocks of several sizes (hybrid models) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard


def bound(
    sparsity: float,
    blocks: int,
    weights: Sequence[float] | None = None,
    *,
    falling: bool = False,
    most: float = 1.0,
) -> float:
    """Largest |common difference| that keeps every block rate in [0, most].

    most: 1, or `Pattern.largest_rate`.  weights: parameters per block; where they differ, the rates
    pivot about the weighted centre c,

        d (L - 1 - c) <= most - S,   d c <= S     and with c and L - 1 - c swapped if `falling`

    (d < 0) and the two directions differ; with equal blocks, c = (L - 1) / 2, they are one bound.
    """
    if blocks < 2:
        return math.inf  # one block has no difference
    if not _differ(weights):
        return min(2 * sparsity / (blocks - 1), 2 * (most - sparsity) / (blocks - 1))
    before = _centre(weights)
    after = blocks - 1 - before
    up, down = (before, after) if falling else (after, before)  # steps above and below the mean
    return min((most - sparsity) / up, sparsity / down)


def check_difference(
    difference: float,
    sparsity: float,
    blocks: int,
    weights: Sequence[float] | None = None,
    *,
    most: float = 1.0,
) -> None:
    """Raise ValueError beyond the bound of the difference's direction (equality is legal).

    weights, most: as those of `bound`.
    """
    limit = bound(sparsity, blocks, weights, falling=difference < 0, most=most)
    if abs(difference) <= limit * (1 + 1e-9):
        return
    pattern = "" if most == 1 else f" (a mixed pattern keeps 1 of every {round(1 / (1 - most))})"
    if not _differ(weights):
        raise ValueError(
            f"common_difference {difference} exceeds 2*min(s, {most:g}-s)/(L-1) = {limit:.4g} "
            f"for L={blocks}, s={sparsity}{pattern}; choose a value in [-{limit:.4g}, {limit:.4g}]"
        )
    least, greatest = (
        bound(sparsity, blocks, weights, falling=falling, most=most) for falling in (True, False)
    )
    raise ValueError(
        f"common_difference {difference} takes a block's rate out of [0, {most:g}]{pattern} for "
        f"L={blocks}, s={sparsity} and blocks of different size, whose weighted centre is block "
        f"{_centre(weights):.4g} of 0..{blocks - 1}; choose a value in "
        f"[-{least:.4g}, {greatest:.4g}]"
    )


def _differ(weights: Sequence[float] | None) -> TypeGuard[Sequence[float]]:
    return weights is not None and len(set(weights)) > 1


def _centre(weights: Sequence[float]) -> float:
    """The weighted mean of the block numbers 0..L-1."""
    return sum(i * w for i, w in enumerate(weights)) / sum(weights)


def rates(
    difference: float, sparsity: float, blocks: int, weights: Sequence[float] | None = None
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


ROUNDING = 1e-3  # of the mean sparsity: what whole N per block may leave without a word


def mixed_kept(
    block_rates: Sequence[float],
    group_size: int,
    sparsity: float,
    weights: Sequence[float] | None = None,
) -> list[int]:
    """N per block for a mixed N:M pattern, by largest remainder; ties go to the earlier block.

    The N sum to round(L * M * (1 - s)); each is clamped to 1..M.  weights: parameters per block;
    where blocks differ in size, each N goes up or down to a whole one so that the mean over the
    weights is near the target, within half an N of the largest block for rates in [0, 1 - 1/M].
    """
    ideal = [group_size * (1 - rate) for rate in block_rates]
    # a remainder within rounding error of a whole number is that number
    kept = [min(max(math.floor(value + 1e-9), 1), group_size) for value in ideal]
    target = round(len(ideal) * group_size * (1 - sparsity))
    if _differ(weights):
        target = round(math.fsum(ideal))  # the mean of steep rates over blocks is not their target
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
    return kept if weights is None else _move_nearer(kept, ideal, group_size, sparsity, weights)


def _move_nearer(
    kept: list[int],
    ideal: Sequence[float],
    group_size: int,
    sparsity: float,
    weights: Sequence[float],
) -> list[int]:
    """N of one block, or of two against each other, moved while the weighted mean gets nearer.

    Where it costs least, no N a whole one off its own, and not within ROUNDING of the target.
    """
    total = group_size * sum(weights)
    while True:
        moved = sum(n * w for n, w in zip(kept, weights, strict=True))
        missing = total * (1 - sparsity) - moved
        if abs(missing) <= ROUNDING * total:
            return kept
        up, down = (
            [i for i, n in enumerate(kept) if _is_near(n + step, ideal[i], group_size)]
            for step in (1, -1)
        )
        single = [[(i, 1)] for i in up] + [[(i, -1)] for i in down]
        pairs = [[(i, 1), (j, -1)] for i in up for j in down if i != j]
        nearer = [
            steps
            for steps in single + pairs
            if abs(missing - sum(step * weights[i] for i, step in steps)) < abs(missing) - 1e-6
        ]
        if not nearer:
            return kept
        cheapest = max(
            nearer, key=lambda steps: round(sum(s * (ideal[i] - kept[i]) for i, s in steps), 9)
        )
        for i, step in cheapest:
            kept[i] += step


def _is_near(kept: int, ideal: float, group_size: int) -> bool:
    return 1 <= kept <= group_size and abs(kept - ideal) < 1

"""ATP (Huang et al., 2025, arXiv 2502.14770): one sparsity per decoder block, rising linearly.

s_i = S - beta (L - 1) / 2 + beta (i - 1) for i = 1..L, so the mean is S, with
beta <= min(2 S, 2 (1 - S)) / (L - 1).  All in float64, each rate by one multiplication.

The paper also prunes to a mixed N:8 pattern without saying how it rounds.  Here block i keeps
M (1 - s_i) of M inputs, rounded by largest remainder to L N in total.
"""

import math


def beta_bound(sparsity: float, blocks: int) -> float:
    """Return the largest beta that leaves every rate in [0, 1]; infinite for a single block."""
    if blocks == 1:
        return math.inf
    return min(2 * sparsity / (blocks - 1), 2 * (1 - sparsity) / (blocks - 1))


def beta_grid(sparsity: float, blocks: int, step: float = 0.002) -> list[float]:
    """Return step, 2 step, ... up to the bound, as decimals of three digits."""
    if blocks == 1:
        raise ValueError("a single block has no progression to search")
    grid = []
    n = 1
    while round(step * n, 3) <= beta_bound(sparsity, blocks):
        grid.append(round(step * n, 3))
        n += 1
    return grid


def rates(sparsity: float, beta: float, blocks: int) -> list[float]:
    """Return the sparsity of each block, first to last; raises ValueError past the bound."""
    bound = beta_bound(sparsity, blocks)
    if abs(beta) > bound:
        raise ValueError(f"beta {beta} is not in [-{bound}, {bound}]")
    first = sparsity - (beta * (blocks - 1)) / 2
    return [first + i * beta for i in range(blocks)]


def mixed_kept_counts(block_rates: list[float], n_keep: int, m: int) -> list[int]:
    """Return how many of every m inputs each block keeps, in 1..m, in total n_keep per block.

    Starts from the shares m (1 - s_i) rounded down, then gives one to the block furthest below
    its share until the total is met.  On ties the earlier block keeps more.  If raising blocks to
    1 overdraws the total, the block that misses least of its share gives one back.
    """
    if not 1 <= n_keep <= m:
        raise ValueError(f"n_keep {n_keep} is not in [1, {m}]")
    # Nine digits: far above float64 noise, far below any difference of two rates on the grid.
    shares = [round(m * (1 - rate), 9) for rate in block_rates]
    kept = [min(max(math.floor(share), 1), m) for share in shares]
    total = n_keep * len(block_rates)

    def missing(block: int) -> float:
        return round(shares[block] - kept[block], 9)

    while sum(kept) < total:
        open_blocks = [b for b in range(len(kept)) if kept[b] < m]
        kept[max(open_blocks, key=lambda b: (missing(b), -b))] += 1
    while sum(kept) > total:
        open_blocks = [b for b in range(len(kept)) if kept[b] > 1]
        kept[min(open_blocks, key=lambda b: (missing(b), -b))] -= 1
    return kept

"""Find the lowest scores of a row, of a matrix or of every group of M; ties by position.

Selection in linear time instead of sorting; every function returns what is to be pruned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsemend.errors import NotFinite
from sparsemend.sparse.histogram import kth_by_counting
from sparsemend.sparse.pattern import Pattern

COUNTED = (torch.float32, torch.bfloat16, torch.float16)  # dtypes whose values are all in fp32


def lowest_per_row(score: Tensor, count: int) -> Tensor:
    """Bool (O, I): the `count` lowest scores of every row; ties fall to the lower index.

    Equal to the first `count` columns of a stable ascending sort (Wanda, Sec. 3), by selection
    instead of sorting.
    """
    columns = score.shape[1]
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if count >= columns:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = kth_lowest(score, count)
    chosen = score <= threshold
    surplus = chosen.sum(dim=1) != count
    if surplus.any():
        rows = score[surplus]
        below = rows < threshold[surplus]
        tied = rows == threshold[surplus]
        missing = count - below.sum(dim=1, keepdim=True)
        chosen[surplus] = below | (tied & (tied.cumsum(dim=1) <= missing))
    return chosen


def lowest_over_rows(score: Tensor, count: int) -> Tensor:
    """Bool (O, I): `count` lowest scores, taken from the rows as equally as possible.

    The rows that lose one more than the others are those whose next score is lowest; ties fall to
    the earlier row and the lower index.
    """
    each, further = divmod(count, score.shape[0])
    chosen = lowest_per_row(score, each)
    if further:
        following = score.float().masked_fill(chosen, torch.inf).min(dim=1)
        rows = following.values.argsort(stable=True)[:further]
        chosen[rows, following.indices[rows]] = True
    return chosen


def lowest_of_all(score: Tensor, count: int) -> Tensor:
    """Bool (O, I): exactly the `count` lowest scores of the matrix; ties to the lower index."""
    return lowest_per_row(score.reshape(1, -1), count).view(score.shape)


def kth_lowest(score: Tensor, count: int) -> Tensor:
    """The `count`-th lowest (1-based) score of every row, (O, 1); the same on every device.

    NaN counts as the highest.
    """
    if score.device.type != "cpu":
        if len(score) == 1 and score.dtype in COUNTED:
            return kth_by_counting(score.float(), count).view(1, 1).to(score.dtype)
        return score.sort(dim=1).values[:, count - 1 : count].clone()
    comparable = score.float() if score.dtype == torch.bfloat16 else score
    return _kth_by_numpy(comparable.detach(), count)


# an operator of torch's, so that a dry run on tensors without values knows its result too
@torch.library.custom_op("sparsemend::kth_lowest", mutates_args=(), device_types="cpu")
def _kth_by_numpy(score: Tensor, count: int) -> Tensor:
    """By NumPy's vectorised selection, in 0.4 of kthvalue's processor time (4096 x 4096)."""
    partitioned = np.partition(score.numpy(), count - 1, axis=1)
    return torch.from_numpy(partitioned[:, count - 1 : count].copy())


@_kth_by_numpy.register_fake
def _(score: Tensor, count: int) -> Tensor:
    return score.new_empty((len(score), 1))


def checked_finite(score: Tensor) -> Tensor:
    """`score` itself; raises NotFinite if any of it is NaN or infinite, which has no rank."""
    if not score.isfinite().all():
        bad = score.numel() - int(score.isfinite().count_nonzero())
        raise NotFinite(
            f"{bad} of {score.numel()} scores are NaN or infinite; check this linear's weight and "
            "the activations of the blocks before it (half precision overflows beyond 65504)"
        )
    return score


def lowest_of_layer(score: Tensor, sparsity: float) -> Tensor:
    """Bool (O, I): every score <= the int(sparsity * numel)-th lowest (0-based) of the matrix.

    At least one more than the product, and all ties: the rule of the reference magnitude pruner
    (Wanda repository).  sparsity 0 chooses none and sparsity >= 1 all, where that code fails.
    """
    if sparsity <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    index = int(score.numel() * sparsity)
    if index >= score.numel():
        return torch.ones_like(score, dtype=torch.bool)
    return score <= kth_lowest(score.reshape(1, -1), index + 1)


def lowest_per_group(score: Tensor, pattern: Pattern) -> Tensor:
    """Bool (O, I): the M - N lowest scores of every M consecutive inputs; ties to the lower index.

    A short last group loses the same M - N (all of it, if it has fewer), as the reference codes
    do; whether such widths are allowed at all is checked before pruning starts.
    """
    removed = pattern.group_size - pattern.kept
    whole = score.shape[1] - score.shape[1] % pattern.group_size
    groups = score[:, :whole].reshape(-1, pattern.group_size)
    if pattern.group_size <= 8:  # beyond, selection is faster than comparing every pair
        chosen = rank_in_group(groups) < removed
    else:
        chosen = lowest_per_row(groups, removed)
    parts = [chosen.view(score.shape[0], whole)]
    if whole < score.shape[1]:
        parts.append(lowest_per_row(score[:, whole:], removed))
    return torch.cat(parts, dim=1)


def rank_in_group(groups: Tensor) -> Tensor:
    """int8 (G, M): number of scores of its group of M that each outranks; ties rank by index.

    Compares every pair, all groups at once: many times faster than sorting millions of tiny rows.
    """
    columns = groups.T.contiguous()
    size = columns.shape[0]
    rank = torch.arange(size, dtype=torch.int8, device=groups.device)
    rank = rank.unsqueeze(1).repeat(1, columns.shape[1])  # as if every earlier one were lower
    for later in range(1, size):
        for earlier in range(later):
            inverted = (columns[earlier] > columns[later]).view(torch.int8)
            rank[earlier] += inverted
            rank[later] -= inverted
    return rank.T.contiguous()

"""One mask update, two scores: weights leave a support, others enter, their state is forgotten.

    dropped   the `count` held positions of lowest drop score
    chosen    the `count` candidates of highest grow score that no remaining position holds
    moved     dropped and chosen, less what is both (it stays as it is), paired worst with best

SET drops by |w| and grows at random, RigL by |gradient|, sparse momentum by |momentum|; SpIEL and
SEFT hold deltas instead of weights and drop by |delta|.  Every selection is exact, with ties to
the lower index, so that all processes of a fit decide alike.

SET: Mocanu et al. 2018, arXiv 1707.04780.  RigL: Evci et al. 2020, arXiv 1911.11134.  Sparse
momentum: Dettmers and Zettlemoyer 2019, arXiv 1907.04840.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemend.sparse.selection import checked_finite, lowest_per_row


def lowest(score: Tensor, count: int) -> Tensor:
    """Indices (int64) of the `count` lowest of score (n,), ascending; ties to the lower index."""
    chosen = lowest_per_row(checked_finite(score).view(1, -1), count).view(-1).nonzero().view(-1)
    return chosen[score[chosen].argsort(stable=True)]


def highest(score: Tensor, count: int) -> Tensor:
    """Indices (int64) of the `count` highest of score (n,), descending; ties to the lower index."""
    return lowest(-score, count)


@dataclass(frozen=True)
class Move:
    """The places `slots` (P,) of `held` to refill with the positions `positions` (P,).

    returning: places that were both dropped and chosen, and so stay as they are.
    """

    slots: Tensor
    positions: Tensor
    returning: Tensor


def exchange(
    held: Tensor,
    drop_score: Tensor,
    candidates: Tensor,
    grow_score: Tensor,
    *,
    count: int,
    size: int,
) -> Move:
    """The moves among flat positions below `size`; held and candidates each hold distinct ones.

    held, drop_score (K,); candidates, grow_score (C,).  Fewer than `count` move where candidates
    are held already.  The lowest drop score is paired with the highest grow score.
    """
    held, candidates = held.long(), candidates.long()
    dropped = lowest(drop_score, count)
    remains = torch.zeros(size, dtype=torch.bool, device=held.device)
    remains[held] = True
    remains[held[dropped]] = False
    free = ~remains[candidates]
    candidates, grow_score = candidates[free], grow_score[free]
    chosen = candidates[highest(grow_score, min(count, candidates.numel()))]
    picked = torch.zeros_like(remains)
    picked[chosen] = True
    stays = picked[held[dropped]]
    picked[held[dropped]] = False
    leaving, entering = dropped[~stays], chosen[picked[chosen]]
    pairs = min(leaving.numel(), entering.numel())
    return Move(leaving[:pairs], entering[:pairs], dropped[stays])


def moved_support(
    keep: Tensor, drop_score: Tensor, grow_score: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """(new support, positions that entered or left it), bool (O, I); at most `count` of each.

    keep: the support; the two scores (O, I), any real.
    """
    held = keep.view(-1).nonzero().view(-1)
    free = (~keep).view(-1).nonzero().view(-1)
    # a dropped position competes with the free ones for its place
    candidates = torch.cat([free, held])
    move = exchange(
        held,
        drop_score.view(-1)[held],
        candidates,
        grow_score.view(-1)[candidates],
        count=count,
        size=keep.numel(),
    )
    new = keep.clone()
    new.view(-1)[held[move.slots]] = False
    new.view(-1)[move.positions] = True
    return new, new != keep


def at_most_per_group(positions: Tensor, group_size: int, limit: int) -> Tensor:
    """Bool (P,): whether fewer than `limit` earlier ones of positions (P,) share its group."""
    group = positions // group_size
    order = group.argsort(stable=True)
    ordered = group[order]
    first = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(ordered), device=ordered.device) - first
    within = torch.empty_like(rank, dtype=torch.bool)
    within[order] = rank < limit
    return within


def forget_(state: Mapping[str, object], shape: torch.Size, moved: Tensor) -> None:
    """Zero the `moved` entries (mask or indices) of optimizer-state tensors of this shape."""
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == shape:
            value[moved] = 0

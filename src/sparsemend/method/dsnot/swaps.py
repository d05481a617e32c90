"""DSnoT's swaps on one weight matrix: pure functions on tensors.

With D = W * s (s: mean token sum of each input), a row's expected output error is the sum of D
over its pruned weights, E; kept weights that the pruner updated leave a part of it from the start
(`left`).  Up to T times each row revives the pruned weight with the most extreme
D / v^p of E's sign and prunes a weak kept one: E := (E + D_pruned) - D_revived, in fp32 and in this
order (Zhang, Zhao, Lin et al. 2024, arXiv 2310.08915).

Only the T outermost entries at each end of the two orders are ever read, so all rows advance
together on (R, 2T) tables, with no host sync per cycle.  `clean` freezes a stopped row, and stops a
row whose next pick is not a legal swap; the authors' code (`faithful`) lets a stopped row go on
taking and writing while any row of the matrix is active, which can change its number of zeros.
The two agree where every row has T pruned and T kept weights of either sign of D.

Shapes: R rows (outputs), C columns (inputs), T = max_cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_group, lowest_per_row

COLUMN_BITS = 24  # low bits of a sort key; with 33 bits of value and class it fits an int64
COLUMN_MASK = (1 << COLUMN_BITS) - 1
KEPT = 1 << 33  # lifts the kept weights above every pruned one; values are within 32 bits
INFINITY_BITS = 0x7F800000  # of fp32; the bits of non-negative floats order as the floats do
CHUNK_WEIGHTS = {"cpu": 1 << 18}  # a few such tensors fit the second-level cache
LARGE_CHUNK_WEIGHTS = 1 << 24  # elsewhere: bounds the memory of the sort


@dataclass(frozen=True, kw_only=True)
class SwapRule:
    """T, epsilon (in token sums, as E), p, and which stops apply."""

    max_cycles: int
    threshold: float
    variance_power: float
    same_sign: bool
    faithful: bool


@dataclass(frozen=True)
class InputMoments:
    """s, q, v of one linear's inputs: mean token sum, mean sum of squares, variance; fp32 (C,)."""

    total: Tensor
    squared: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Refined:
    """New support (R, C), and E (R,) before the first swap and after the last."""

    keep: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Picks:
    """The entries that rows may take from the ends of an order: [0, T) left, [T, 2T) right.

    columns (R, 2T) int64, contribution = D there (fp32), legal = whether a row may go on with it.
    """

    columns: Tensor
    contribution: Tensor
    legal: Tensor

    def at(self, entry: Tensor) -> Picks:
        """The picks (R, 1) at `entry` (R, 1)."""
        fields = (self.columns, self.contribution, self.legal)
        return Picks(*(field.gather(1, entry) for field in fields))


# (cycle, E, revived) -> picks (R, 1) to prune
Prune = Callable[[int, Tensor, Picks], Picks]


def initial_keep(score: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Keep (R, C) after pruning the int(C * sparsity) lowest scores of every row, or per group.

    Ties fall to the lower column.  An N:M pattern fixes the count, whatever `sparsity` says.
    """
    if pattern.unstructured:
        return ~lowest_per_row(score, int(score.shape[1] * sparsity))
    return ~lowest_per_group(score, pattern)


def refine(
    weight: Tensor,
    moments: InputMoments,
    keep: Tensor,
    rule: SwapRule,
    left: Tensor | None = None,
) -> Refined:
    """Swap within rows; kept weights are pruned by |W| * sqrt(q), whatever chose `keep`.

    left: the part of E (R,) that kept weights leave, None where they have their dense values.
    """
    error, grow, prune = _orders(weight, moments, keep, rule, left)
    cursor = _Cursor(prune)
    return _swap(keep, error, grow, lambda cycle, E, _: cursor.take(cycle, left=E >= 0), rule)


def refine_groups(
    weight: Tensor,
    moments: InputMoments,
    keep: Tensor,
    score: Tensor,
    group_size: int,
    rule: SwapRule,
    left: Tensor | None = None,
) -> Refined:
    """Swap within groups of `group_size` columns, so that an N:M support stays one.

    The weight of lowest `score` in the revived one's group goes, whatever the sign of its D; each
    is considered once.  Rows always stop before E changes sign, as in the authors' code.  left: as
    that of `refine`.
    """
    error, grow, _ = _orders(weight, moments, keep, rule, left)
    rest = F.pad(
        score.float().masked_fill(~keep, torch.inf),
        (0, -score.shape[1] % group_size),
        value=torch.inf,
    )
    groups = rest.view(len(rest), -1, group_size)

    def prune(cycle: int, E: Tensor, grown: Picks) -> Picks:
        group = grown.columns // group_size
        scores = groups.gather(1, group.unsqueeze(2).expand(-1, -1, group_size)).squeeze(1)
        columns = group * group_size + scores.argmin(dim=1, keepdim=True)
        legal = scores.amin(dim=1, keepdim=True).isfinite() | rule.faithful
        rest.scatter_(1, columns, torch.inf)
        return Picks(columns, _contribution(weight, moments.total, columns), legal)

    return _swap(keep, error, grow, prune, replace(rule, same_sign=True))


class _Cursor:
    """Counts the entries each row has taken from the left end; it took the rest from the right."""

    def __init__(self, picks: Picks) -> None:
        self._picks = picks
        self._cycles = picks.columns.shape[1] // 2
        self._from_left = torch.zeros_like(picks.columns[:, :1])

    def take(self, cycle: int, *, left: Tensor) -> Picks:
        """The next picks (R, 1); cursors move whether or not the swap is accepted."""
        from_right = self._cycles + cycle - self._from_left
        picks = self._picks.at(torch.where(left, self._from_left, from_right))
        self._from_left += left
        return picks


def _swap(keep: Tensor, error: Tensor, grow: Picks, prune: Prune, rule: SwapRule) -> Refined:
    """Run the T cycles.  The threshold is tested on E before the swap; |E| need not shrink."""
    keep, E = keep.clone(), error
    initial_sign = E.sign()
    active = torch.ones_like(E, dtype=torch.bool)
    frozen = ~active
    cursor = _Cursor(grow)
    for cycle in range(rule.max_cycles):
        any_active = active.any()
        g = cursor.take(cycle, left=E <= 0)
        w = prune(cycle, E, g)
        swapped = (E + w.contribution) - g.contribution
        legal = g.legal & w.legal
        active = active & legal & (E.abs() > rule.threshold)
        if rule.same_sign:
            active &= swapped.sign() == initial_sign
        was_kept = keep.gather(1, w.columns)
        if rule.faithful:
            frozen |= ~legal  # ran off the end of an order, where the authors' code fails
            writes = any_active & ~frozen
        else:
            active &= was_kept
            writes = active
        keep.scatter_(1, w.columns, torch.where(writes, ~active, was_kept))
        keep.scatter_(1, g.columns, torch.where(writes, active, keep.gather(1, g.columns)))
        E = torch.where(active, swapped, E)
    return Refined(keep, error.squeeze(1), E.squeeze(1))


def _orders(
    weight: Tensor, moments: InputMoments, keep: Tensor, rule: SwapRule, left: Tensor | None
) -> tuple[Tensor, Picks, Picks]:
    """(initial E (R, 1), picks to revive, picks to prune), computed a few rows at a time."""
    budget = CHUNK_WEIGHTS.get(weight.device.type, LARGE_CHUNK_WEIGHTS)
    rows = max(1, budget // weight.shape[1])
    chunks = [
        _orders_of_rows(part, moments, part_keep, rule)
        for part, part_keep in zip(weight.split(rows), keep.split(rows), strict=True)
    ]
    errors, grows, prunes = zip(*chunks, strict=True)
    error = torch.cat(errors)
    if left is not None:
        error = error + left.unsqueeze(1)
    return error, _stack(grows), _stack(prunes)


def _stack(parts: Sequence[Picks]) -> Picks:
    return Picks(
        torch.cat([part.columns for part in parts]),
        torch.cat([part.contribution for part in parts]),
        torch.cat([part.legal for part in parts]),
    )


def _orders_of_rows(
    weight: Tensor, moments: InputMoments, keep: Tensor, rule: SwapRule
) -> tuple[Tensor, Picks, Picks]:
    weight = weight.float()
    D = weight * moments.total
    omega = weight.abs() * moments.squared.sqrt()
    pruned = keep.to(torch.int32) - 1  # every bit set where pruned
    of_pruned = (D.view(torch.int32) & pruned).view(torch.float32)
    spread = moments.variance**rule.variance_power if rule.variance_power else torch.ones_like(D[0])
    # A constant input (v = 0) is never revived; the authors' 0 / 0 would rank it first.
    constant = spread == 0
    keys = _sorted_keys(D, D / spread.masked_fill(constant, torch.inf), omega, pruned)
    first_kept = keep.shape[1] - keep.sum(dim=1, keepdim=True)
    start, end = torch.zeros_like(first_kept), torch.full_like(first_kept, keep.shape[1])

    if rule.faithful:
        order = (of_pruned / spread).sort(dim=1, stable=True).indices
        columns, legal = _ends(order, start, end, rule.max_cycles)
        grow = Picks(columns, _contribution(weight, moments.total, columns), legal)
    else:
        entries, legal = _ends(keys, start, first_kept, rule.max_cycles)
        columns = torch.where(legal, entries & COLUMN_MASK, 0)
        values = _contribution(weight, moments.total, columns)
        wanted = values.new_tensor([-1, 1]).repeat_interleave(rule.max_cycles)
        grow = Picks(columns, values, legal & (values.sign() == wanted) & ~constant[columns])

    entries, legal = _ends(keys, first_kept, end, rule.max_cycles)
    columns = _prune_columns(entries, legal, omega, keep)
    return (
        of_pruned.sum(dim=1, keepdim=True),
        grow,
        Picks(columns, _contribution(weight, moments.total, columns), legal),
    )


def _sorted_keys(D: Tensor, G: Tensor, omega: Tensor, pruned: Tensor) -> Tensor:
    """Each row's weights in both orders at once, as int64 keys that end in the column.

    First the pruned weights by ascending `G`; then the kept ones: D < 0 by ascending `omega`,
    D = 0, and D > 0 by descending `omega`.  Ties go to the lower column first, except among kept
    weights with D > 0, where it comes last because they are read from the right.
    """
    grow = G.view(torch.int32)
    grow = grow ^ ((grow >> 31) & 0x7FFFFFFF)  # the integers now order as the floats do
    sign = D.sign().to(torch.int32)
    prune = (INFINITY_BITS - omega.view(torch.int32)) * sign
    value = prune ^ ((prune ^ grow) & pruned)
    mirrored = -(sign > 0).to(torch.int32) & ~pruned & COLUMN_MASK
    column = mirrored ^ torch.arange(D.shape[1], dtype=torch.int32, device=D.device)
    keys = value.long().add_((pruned + 1).long() * KEPT).mul_(1 << COLUMN_BITS).add_(column)
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)  # in place, without the indices torch would return: half the time
    return keys


def _ends(order: Tensor, start: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(entries, exists): the first `count` of each row's order[start:end], then the last, reversed.

    Both (R, 2 * count); `exists` is False past the ends of short rows.  start, end (R, 1).
    """
    step = torch.arange(count, device=order.device)
    position = torch.cat([start + step, end - 1 - step], dim=1)
    exists = (position >= start) & (position < end)
    return order.gather(1, position.clamp(0, order.shape[1] - 1)), exists


def _prune_columns(entries: Tensor, exists: Tensor, omega: Tensor, keep: Tensor) -> Tensor:
    """Columns of kept entries; an entry with D = 0 is replaced by the row's weakest kept weight.

    The authors' code substitutes so; it matters only where a row runs out of kept weights of the
    sign it wants.
    """
    value, column = entries >> COLUMN_BITS, entries & COLUMN_MASK
    column = torch.where(exists & (value > KEPT), column ^ COLUMN_MASK, column)
    neutral = exists & (value == KEPT)
    if neutral.any():
        weakest = omega.masked_fill(~keep, torch.inf).argmin(dim=1, keepdim=True)
        column = torch.where(neutral, weakest, column)
    return torch.where(exists, column, 0)


def _contribution(weight: Tensor, total: Tensor, columns: Tensor) -> Tensor:
    """D at `columns` (R, n), computed by the same product as D itself."""
    return weight.gather(1, columns).float() * total[columns]

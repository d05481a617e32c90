"""DSnoT (Zhang et al., 2023, arXiv 2310.08915), one row and one swap at a time.

With D_c = w_c s_c, a row's expected error is E = sum of D over its pruned columns.  Each cycle
grows the pruned column g whose D / v^p is most extreme with the sign of E, and prunes a weak kept
column w of the other sign: E' = (E + D_w) - D_g, in fp32 and in this order.

mode "faithful" does what the authors' code does: a stopped row goes on taking columns and writing
while any other row is active, so it may change its number of zeros; only where that code runs past
the end of a list do we freeze the row.  mode "clean" freezes every stopped row, and stops a row
whose next column is not a legal pick; inputs with v_c = 0 are then never grown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Mode = Literal["clean", "faithful"]


@dataclass
class Row:
    """One output row; lists are indexed by column, orders hold columns."""

    contribution: list[np.float32]  # D
    pruned: list[bool]
    growable: list[bool]  # clean only; pruned at the start, and not an input of variance 0
    error: np.float32  # E
    initial_sign: np.float32
    grow_order: list[int]
    grow_left: int
    grow_right: int
    prune_order: list[int]  # unstructured only
    prune_left: int
    prune_right: int
    prune_score: list[float]  # N:M only; +inf where a column must not be pruned (again)
    active: bool = True
    frozen: bool = False


def dsnot(
    weight: Tensor,
    s: Tensor,
    q: Tensor,
    v: Tensor,
    initial_metric: Tensor,
    sparsity: float,
    *,
    max_cycles: int,
    threshold: float,
    variance_power: float,
    same_sign: bool,
    mode: Mode,
) -> Tensor:
    """Return the refined unstructured keep mask (R, C).

    weight (R, C) is dense; s, q, v (C,) are the calibration statistics; initial_metric (R, C)
    ranks the weights of a row for the initial mask; same_sign stops a row whose E would change
    its initial sign.
    """
    _check_mode(mode)
    columns = weight.shape[1]
    count = int(columns * sparsity)
    initially_pruned = torch.zeros(weight.shape, dtype=torch.bool)
    for r in range(weight.shape[0]):
        initially_pruned[r, _ascending(initial_metric[r].tolist())[:count]] = True

    wanda = weight.abs().float() * torch.sqrt(q.float()).reshape(1, -1)
    rows = _start_rows(weight, s, v, initially_pruned, variance_power, mode)
    for r, row in enumerate(rows):
        row.prune_order = _prune_order(wanda[r].tolist(), row, columns - count)
        row.prune_right = columns - count - 1

    limit = np.float32(threshold)

    def step(row: Row) -> None:
        if mode == "clean":
            _step_clean(row, limit, same_sign)
        else:
            _step_faithful(row, limit, same_sign)

    return _run(rows, step, max_cycles)


def dsnot_n_m(
    weight: Tensor,
    s: Tensor,
    q: Tensor,
    v: Tensor,
    initial_metric: Tensor,
    n_keep: int,
    m: int,
    *,
    max_cycles: int,
    threshold: float,
    variance_power: float,
    mode: Mode,
) -> Tensor:
    """Return the refined keep mask (R, C) with n_keep of every m inputs kept.

    Pruning follows initial_metric, not Wanda's score, so q is not used; the same-sign rule is
    always on.
    """
    _check_mode(mode)
    columns = weight.shape[1]
    metric = initial_metric.float()
    initially_pruned = torch.zeros(weight.shape, dtype=torch.bool)
    for r in range(weight.shape[0]):
        for first in range(0, columns, m):
            group = metric[r, first : first + m].tolist()
            for position in _ascending(group)[: m - n_keep]:
                initially_pruned[r, first + position] = True

    rows = _start_rows(weight, s, v, initially_pruned, variance_power, mode)
    for r, row in enumerate(rows):
        row.prune_score = metric[r].tolist()
        for c in range(columns):
            if row.pruned[c]:
                row.prune_score[c] = math.inf

    limit = np.float32(threshold)

    def step(row: Row) -> None:
        if mode == "clean":
            _step_clean_n_m(row, limit, m)
        else:
            _step_faithful_n_m(row, limit, m)

    return _run(rows, step, max_cycles)


def _check_mode(mode: str) -> None:
    if mode not in ("clean", "faithful"):
        raise ValueError(f"mode {mode!r} is neither 'clean' nor 'faithful'")


def _ascending(values: list[float]) -> list[int]:
    """Return positions in ascending order of value, NaN last, ties by position."""

    def key(position: int) -> tuple[bool, float, int]:
        value = values[position]
        return (True, 0.0, position) if math.isnan(value) else (False, value, position)

    return sorted(range(len(values)), key=key)


def _start_rows(
    weight: Tensor,
    s: Tensor,
    v: Tensor,
    initially_pruned: Tensor,
    variance_power: float,
    mode: Mode,
) -> list[Row]:
    """Return the rows with D, E and the grow order; prune orders are left to the caller."""
    contribution = weight.float() * s.float().reshape(1, -1)
    pruned_part = torch.where(initially_pruned, contribution, torch.zeros(()))
    error = pruned_part.sum(dim=1)  # fp32 over all C entries: its reduction order shows in bits
    grow_score = pruned_part
    growable = initially_pruned.clone()
    if variance_power != 0:
        grow_score = pruned_part / torch.pow(v.float(), variance_power).reshape(1, -1)
        if mode == "clean":
            for c in range(weight.shape[1]):
                if v[c] == 0:
                    grow_score[:, c] = 0
                    growable[:, c] = False

    rows = []
    for r in range(weight.shape[0]):
        start = np.float32(error[r].item())
        rows.append(
            Row(
                contribution=[np.float32(d) for d in contribution[r].tolist()],
                pruned=initially_pruned[r].tolist(),
                growable=growable[r].tolist(),
                error=start,
                initial_sign=np.sign(start),
                grow_order=_ascending(grow_score[r].tolist()),
                grow_left=0,
                grow_right=weight.shape[1] - 1,
                prune_order=[],
                prune_left=0,
                prune_right=-1,
                prune_score=[],
            )
        )
    return rows


def _prune_order(wanda: list[float], row: Row, kept: int) -> list[int]:
    """Return the kept columns: D < 0 from weak to strong, then D > 0 from strong to weak.

    For every kept column with D = 0 the weakest kept column of the row stands in between, as in
    the authors' code.
    """
    score = [math.inf if row.pruned[c] else wanda[c] for c in range(len(wanda))]
    weakest_first = _ascending(score)[:kept]
    negative = [c for c in weakest_first if row.contribution[c] < 0]
    zero = [weakest_first[0] for c in weakest_first if row.contribution[c] == 0]
    positive = [c for c in weakest_first if row.contribution[c] > 0]
    return negative + zero + positive[::-1]


def _run(rows: list[Row], step: Callable[[Row], None], max_cycles: int) -> Tensor:
    """Step all rows max_cycles times, or until none is active; return the keep mask."""
    for _ in range(max_cycles):
        if not any(row.active for row in rows):
            break
        for row in rows:
            step(row)
    return ~torch.tensor([row.pruned for row in rows], dtype=torch.bool)


def _take_grow(row: Row) -> int | None:
    """Return the next column to grow, on the side of E's sign, or None past the end."""
    if row.error > 0:
        position = row.grow_right
        row.grow_right -= 1
    else:
        position = row.grow_left
        row.grow_left += 1
    return row.grow_order[position] if 0 <= position < len(row.grow_order) else None


def _take_prune(row: Row) -> int | None:
    """Return the next column to prune, on the side opposite to E, or None past the end."""
    if row.error < 0:
        position = row.prune_right
        row.prune_right -= 1
    else:
        position = row.prune_left
        row.prune_left += 1
    return row.prune_order[position] if 0 <= position < len(row.prune_order) else None


def _error_after(row: Row, grown: int, removed: int) -> np.float32:
    """Return E' = (E + D_w) - D_g, rounded to fp32 after each of the two operations."""
    partial = np.float32(row.error + row.contribution[removed])
    return np.float32(partial - row.contribution[grown])


def _still_active(row: Row, new_error: np.float32, limit: np.float32, same_sign: bool) -> bool:
    """Return whether an active row accepts the swap; the limit meets E from before the swap."""
    large = bool(abs(row.error) > limit)
    same = bool(np.sign(new_error) == row.initial_sign)
    return row.active and large and (same or not same_sign)


def _freeze(row: Row) -> None:
    row.active = False
    row.frozen = True


def _step_faithful(row: Row, limit: np.float32, same_sign: bool) -> None:
    """Take one swap; a stopped row still takes columns and writes."""
    if row.frozen:
        return
    grown = _take_grow(row)
    removed = _take_prune(row)
    if grown is None or removed is None:
        _freeze(row)
        return
    new_error = _error_after(row, grown, removed)
    row.active = _still_active(row, new_error, limit, same_sign)
    row.pruned[removed] = row.active
    row.pruned[grown] = not row.active
    if row.active:
        row.error = new_error


def _step_clean(row: Row, limit: np.float32, same_sign: bool) -> None:
    """Take one swap, or stop the row for good; the sign of D_w is not tested."""
    if not row.active:
        return
    grown = _take_grow(row)
    removed = _take_prune(row)
    if grown is None or removed is None:
        row.active = False
        return
    legal_grow = row.growable[grown] and row.pruned[grown]
    sign_fits = np.sign(row.contribution[grown]) == np.sign(row.error)
    legal_prune = not row.pruned[removed]
    if not (legal_grow and sign_fits and legal_prune):
        row.active = False
        return
    new_error = _error_after(row, grown, removed)
    row.active = _still_active(row, new_error, limit, same_sign)
    if row.active:
        row.pruned[removed] = True
        row.pruned[grown] = False
        row.error = new_error


def _weakest_of_group(row: Row, column: int, m: int) -> int:
    """Return the column of the smallest prune score in column's group, ties to the lower one."""
    first = column // m * m
    group = range(first, min(first + m, len(row.prune_score)))
    return min(group, key=lambda c: (row.prune_score[c], c))


def _step_faithful_n_m(row: Row, limit: np.float32, m: int) -> None:
    """Take one swap inside a group; a stopped row still takes columns and writes."""
    if row.frozen:
        return
    grown = _take_grow(row)
    if grown is None:
        _freeze(row)
        return
    removed = _weakest_of_group(row, grown, m)
    new_error = _error_after(row, grown, removed)
    row.active = _still_active(row, new_error, limit, same_sign=True)
    row.prune_score[removed] = math.inf
    row.pruned[removed] = row.active
    row.pruned[grown] = not row.active
    if row.active:
        row.error = new_error


def _step_clean_n_m(row: Row, limit: np.float32, m: int) -> None:
    """Take one swap inside a group, or stop the row for good."""
    if not row.active:
        return
    grown = _take_grow(row)
    if grown is None:
        row.active = False
        return
    sign_fits = np.sign(row.contribution[grown]) == np.sign(row.error)
    removed = _weakest_of_group(row, grown, m)
    legal_prune = math.isfinite(row.prune_score[removed])
    if not (row.growable[grown] and sign_fits and legal_prune):
        row.active = False
        return
    new_error = _error_after(row, grown, removed)
    row.active = _still_active(row, new_error, limit, same_sign=True)
    row.prune_score[removed] = math.inf
    if row.active:
        row.pruned[removed] = True
        row.pruned[grown] = False
        row.error = new_error

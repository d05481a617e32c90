"""Masks of the one-shot pruners, by sorting, row by row and column by column.

Magnitude: |w|.  Wanda (Sun et al., 2023, arXiv 2306.11695): |w_ij| sqrt(v_j), inside a row.
RIA (Zhang et al., 2024, ICLR): a weight's share of its column plus that of its row, times a power
of the input's norm, inside the whole matrix or a row.
SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774): w_ij^2 / U_jj^2 inside blocks of columns,
with U the upper Cholesky factor of H^-1, and an update of the columns to the right.

Counts are int() of a float64 product.  N:M means N kept of every M inputs; M - N weights leave a
short last group too, or all of it if it is narrower.  On ties the lower column leaves first.
We deviate from the authors' code where it fails: sparsity 0 removes nothing, 1 removes all.
"""

from typing import Literal

import torch
from torch import Tensor


def _weakest_first(scores: list[float]) -> list[int]:
    """Return the positions of scores in ascending order, ties by position."""
    return sorted(range(len(scores)), key=lambda position: (scores[position], position))


def _keep_by_row(score: Tensor, count: int) -> Tensor:
    """Return the keep mask without the count lowest scores of each row."""
    keep = torch.ones(score.shape, dtype=torch.bool)
    for row in range(score.shape[0]):
        for column in _weakest_first(score[row].tolist())[:count]:
            keep[row, column] = False
    return keep


def _keep_by_threshold(score: Tensor, sparsity: float) -> Tensor:
    """Return the keep mask without every score <= the one at index int(sparsity * size)."""
    if sparsity <= 0:
        return torch.ones(score.shape, dtype=torch.bool)
    if sparsity >= 1:
        return torch.zeros(score.shape, dtype=torch.bool)
    ascending = sorted(score.flatten().tolist())
    threshold = ascending[int(score.numel() * sparsity)]
    keep = torch.ones(score.shape, dtype=torch.bool)
    for row in range(score.shape[0]):
        for column in range(score.shape[1]):
            keep[row, column] = score[row, column].item() > threshold
    return keep


def _keep_n_m(score: Tensor, n_keep: int, m: int) -> Tensor:
    """Return the keep mask without the m - n_keep lowest scores of every m columns of a row."""
    if not 0 <= n_keep <= m:
        raise ValueError(f"n_keep {n_keep} is not in [0, {m}]")
    keep = torch.ones(score.shape, dtype=torch.bool)
    for row in range(score.shape[0]):
        for first in range(0, score.shape[1], m):
            group = score[row, first : first + m].float().tolist()
            for position in _weakest_first(group)[: m - n_keep]:
                keep[row, first + position] = False
    return keep


def magnitude(weight: Tensor, sparsity: float, group: Literal["layer", "row"] = "layer") -> Tensor:
    """Return the keep mask (R, C) of magnitude pruning inside the whole layer or inside rows.

    "layer" removes everything up to and including the threshold, so one more than the fraction
    and all its ties; "row" removes exactly int(C * sparsity) from each row.
    """
    if group == "layer":
        return _keep_by_threshold(weight.abs(), sparsity)
    if group == "row":
        return _keep_by_row(weight.abs(), int(weight.shape[1] * sparsity))
    raise ValueError(f"group {group!r} is neither 'layer' nor 'row'")


def magnitude_n_m(weight: Tensor, n_keep: int, m: int) -> Tensor:
    """Return the keep mask (R, C) with the n_keep largest magnitudes of every m inputs."""
    return _keep_n_m(weight.abs(), n_keep, m)


def wanda_score(weight: Tensor, scaler_row: Tensor) -> Tensor:
    """Return |W| sqrt(v) (R, C) in fp32."""
    return weight.abs().float() * torch.sqrt(scaler_row.float()).reshape(1, -1)


def wanda(weight: Tensor, scaler_row: Tensor, sparsity: float) -> Tensor:
    """Return the keep mask (R, C) without the int(C * sparsity) lowest Wanda scores per row."""
    return _keep_by_row(wanda_score(weight, scaler_row), int(weight.shape[1] * sparsity))


def wanda_n_m(weight: Tensor, scaler_row: Tensor, n_keep: int, m: int) -> Tensor:
    """Return the keep mask (R, C) with the n_keep highest Wanda scores of every m inputs."""
    return _keep_n_m(wanda_score(weight, scaler_row), n_keep, m)


def ria_score(weight: Tensor, scaler_row: Tensor, power: float = 0.5) -> Tensor:
    """Return RIA's score (R, C) in fp64, one weight at a time; an all-zero line has no shares."""
    w = weight.double().abs()
    score = torch.zeros(w.shape, dtype=torch.float64)
    for row in range(w.shape[0]):
        for column in range(w.shape[1]):
            if w[row, column] == 0:
                continue
            share = w[row, column] / sum(w[:, column]) + w[row, column] / sum(w[row])
            score[row, column] = share * torch.sqrt(scaler_row[column].double()) ** power
    return score


def ria(weight: Tensor, scaler_row: Tensor, sparsity: float, group: str = "layer") -> Tensor:
    """Return the keep mask (R, C) of RIA, with magnitude's rule or, inside rows, Wanda's."""
    score = ria_score(weight, scaler_row)
    if group == "layer":
        return _keep_by_threshold(score, sparsity)
    return _keep_by_row(score, int(weight.shape[1] * sparsity))


def ria_n_m(weight: Tensor, scaler_row: Tensor, n_keep: int, m: int) -> Tensor:
    """Return the keep mask (R, C) with the n_keep highest RIA scores of every m inputs."""
    return _keep_n_m(ria_score(weight, scaler_row), n_keep, m)


def _keep_by_cumulative_score(score: Tensor, alpha: float) -> Tensor:
    """Return the keep mask without the weakest scores of a row that sum to alpha of its total.

    A row whose smallest score is already above its share loses nothing.
    """
    total = score.sum(dim=1)
    keep = torch.ones(score.shape, dtype=torch.bool)
    for row in range(score.shape[0]):
        ascending = torch.sort(score[row], stable=True).values
        count = int((torch.cumsum(ascending, dim=0) <= total[row] * alpha).sum())
        if count > 0:
            keep[row] = score[row] > ascending[count - 1]
    return keep


def wanda_variant(weight: Tensor, scaler_row: Tensor, sparsity: float) -> Tensor:
    """Return the keep mask (R, C) of Wanda's cumulative-score variant.

    Bisects one alpha in [0, 0.8] for all rows until the mean sparsity is within 0.001, which may
    be out of reach when the target is high.
    """
    score = wanda_score(weight, scaler_row)
    alpha, low, high = 0.4, 0.0, 0.8
    keep = _keep_by_cumulative_score(score, alpha)
    achieved = (~keep).float().mean()  # fp32, as is its distance from the target
    while (achieved - sparsity).abs() > 0.001 and high - low >= 0.001:
        if achieved > sparsity:
            alpha, high = (alpha + low) / 2, alpha
        else:
            alpha, low = (alpha + high) / 2, alpha
        keep = _keep_by_cumulative_score(score, alpha)
        achieved = (~keep).float().mean()
    return keep


def _sparsegpt_start(weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return fp32 W with dead columns zeroed, and U, the upper Cholesky factor of H^-1.

    The damping is a fraction of the mean diagonal after dead entries became 1.
    """
    w = weight.float().clone()
    h = hessian.float().clone()
    for column in range(h.shape[0]):
        if h[column, column] == 0:
            h[column, column] = 1
            w[:, column] = 0
    added = damping * torch.mean(torch.diag(h))
    for column in range(h.shape[0]):
        h[column, column] += added
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return w, torch.linalg.cholesky(inverse, upper=True)


def sparsegpt_score(weight: Tensor, hessian: Tensor, damping: float = 0.01) -> Tensor:
    """Return W^2 / diag(U)^2 (R, C) in fp32 of the weight before any update."""
    w, u = _sparsegpt_start(weight, hessian, damping)
    return w**2 / torch.diag(u).reshape(1, -1) ** 2


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float,
    blocksize: int = 128,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Return SparseGPT's new weight (dtype of weight) and keep mask, both (R, C).

    The mask of a block of columns is fixed when the block is entered, from the weight as all
    earlier blocks left it.
    """
    if sparsity <= 0:
        return weight.clone(), torch.ones(weight.shape, dtype=torch.bool)
    w, u = _sparsegpt_start(weight, hessian, damping)
    columns = w.shape[1]
    keep = torch.ones(w.shape, dtype=torch.bool)
    for first in range(0, columns, blocksize):
        end = min(first + blocksize, columns)
        score = w[:, first:end] ** 2 / torch.diag(u)[first:end].reshape(1, -1) ** 2
        keep[:, first:end] = _keep_by_threshold(score, sparsity)
        errors = torch.zeros(w.shape[0], end - first)
        for column in range(first, end):
            errors[:, column - first] = _eliminate(w, u, keep, column, end)
        w[:, end:] -= errors @ u[first:end, end:]
    return w.to(weight.dtype), keep


def sparsegpt_n_m(
    weight: Tensor,
    hessian: Tensor,
    n_keep: int,
    m: int,
    blocksize: int = 128,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Return SparseGPT's new weight (dtype of weight) and N:M keep mask, both (R, C).

    The mask of a group is fixed when its first column is reached, from the weight as all columns
    to its left left it; raises ValueError if blocksize is not a multiple of m.
    """
    if blocksize % m:
        raise ValueError(f"blocksize {blocksize} is not a multiple of m {m}")
    w, u = _sparsegpt_start(weight, hessian, damping)
    columns = w.shape[1]
    keep = torch.ones(w.shape, dtype=torch.bool)
    for first in range(0, columns, blocksize):
        end = min(first + blocksize, columns)
        errors = torch.zeros(w.shape[0], end - first)
        for column in range(first, end):
            if (column - first) % m == 0:
                stop = min(column + m, end)
                score = w[:, column:stop] ** 2 / torch.diag(u)[column:stop].reshape(1, -1) ** 2
                keep[:, column:stop] = _keep_n_m(score, n_keep, m)
            errors[:, column - first] = _eliminate(w, u, keep, column, end)
        w[:, end:] -= errors @ u[first:end, end:]
    return w.to(weight.dtype), keep


def _eliminate(w: Tensor, u: Tensor, keep: Tensor, column: int, end: int) -> Tensor:
    """Zero one column of w where not kept, compensate up to end in place, return its error (R,)."""
    final = w[:, column].clone()
    final[~keep[:, column]] = 0
    error = (w[:, column] - final) / u[column, column]
    for later in range(column + 1, end):
        w[:, later] -= error * u[column, later]
    w[:, column] = final
    return error

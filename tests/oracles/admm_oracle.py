"""ADMM pruning (Boza, 2024, arXiv 2401.02938) in fp64, in the transposed layout of the paper.

Columns of V are outputs, so V is (C, R): input by output.  A linear system is solved afresh in
every iteration, and masks come from sorted Python lists.
"""

import torch
from torch import Tensor


def _lowest(values: list[tuple[float, tuple[int, int]]], count: int) -> set[tuple[int, int]]:
    return {where for _, where in sorted(values)[:count]}


def _entries(score: Tensor) -> list[tuple[float, tuple[int, int]]]:
    """Every (score, (row, column)) of a weight-shaped score (R, C)."""
    rows, columns = score.shape
    return [(score[r, c].item(), (r, c)) for r in range(rows) for c in range(columns)]


def _removed(
    score: Tensor, sparsity: float, share: float, n_m: tuple[int, int] | None, group: str
) -> set[tuple[int, int]]:
    rows, columns = score.shape
    if n_m is not None:
        kept, size = n_m
        candidates: list[tuple[float, tuple[int, int]]] = []
        for r in range(rows):
            for first in range(0, columns, size):
                inside = [
                    (score[r, c].item(), (r, c)) for c in range(first, min(first + size, columns))
                ]
                candidates += sorted(inside)[: size - kept]
        return _lowest(candidates, int(len(candidates) * share))
    if group == "row":
        gone: set[tuple[int, int]] = set()
        for r in range(rows):
            row = [(score[r, c].item(), (r, c)) for c in range(columns)]
            gone |= _lowest(row, int(columns * sparsity * share))
        return gone
    return _lowest(_entries(score), int(rows * columns * sparsity * share))


def admm(
    weight: Tensor,
    gram: Tensor,
    sparsity: float,
    *,
    n_m: tuple[int, int] | None = None,
    group: str = "layer",
    cubic: bool = False,
    iterations: int = 20,
    mask_iterations: int = 15,
    rho: float = 1.0,
    damping: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Return the new weight (R, C) fp64 and its keep mask; gram is the plain sum X^T X (C, C)."""
    g = gram.double()
    d = torch.sqrt(torch.diag(g)) + 1e-8
    scaled = torch.diag(1 / d) @ g @ torch.diag(1 / d)
    scaled = scaled + damping * torch.mean(torch.diag(scaled)) * torch.eye(len(d)).double()
    v = torch.diag(d) @ weight.double().T
    y = scaled @ v
    system = scaled + rho * torch.eye(len(d)).double()
    u = torch.zeros_like(v)
    keep = torch.ones_like(v)
    if mask_iterations == 0:
        for r, c in _removed(v.abs().T, sparsity, 1.0, n_m, group):
            keep[c, r] = 0
    for t in range(iterations):
        if t < mask_iterations:
            share = 1 - (1 - (t + 1) / mask_iterations) ** 3 if cubic else 1.0
            keep = torch.ones_like(v)
            for r, c in _removed((v + u).abs().T, sparsity, share, n_m, group):
                keep[c, r] = 0
        z = (v + u) * keep
        u = u + v - z
        v = torch.linalg.solve(system, y + rho * (z - u))
    z = (v + u) * keep
    return (torch.diag(1 / d) @ z).T, keep.T.bool()

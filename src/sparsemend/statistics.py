"""What pruners and training-free repair read of a linear's inputs: init, update, value.

All accumulate in fp32 and average over *sequences*, one running rescale per sequence in order, as
the reference codes do, also when several sequences arrive in one batch: batching changes speed,
not the sum being taken.  Shapes: B sequences, T tokens, I inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class Statistic(ABC):
    """Accumulates over calls of one linear."""

    @abstractmethod
    def update(self, inputs: Tensor) -> None:
        """Add the inputs (B, T, I), or (T, I) for one sequence, of one call."""


StatisticFactory = Callable[[int, torch.device], Statistic]


def per_sequence(inputs: Tensor) -> Tensor:
    """(B, T, I) in fp32; a 2-D input counts as one sequence."""
    sequences = inputs.unsqueeze(0) if inputs.ndim == 2 else inputs.flatten(1, -2)
    return sequences.float()


class InputNorm(Statistic):
    """v_j = (1/N) sum over tokens of x_j^2, fp32 (I,)  (Wanda, Sun et al. 2024, `scaler_row`)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.squared = torch.zeros(in_features, device=device)
        self.sequences = 0

    def update(self, inputs: Tensor) -> None:
        for norm in torch.linalg.vector_norm(per_sequence(inputs), dim=1):
            n = self.sequences
            self.squared *= n / (n + 1)
            self.squared += norm**2 / (n + 1)
            self.sequences = n + 1


class Moments(Statistic):
    """s, q and v of DSnoT (Zhang et al. 2024, arXiv 2310.08915), each fp32 (I,).

    total: mean over sequences of the token sum of x;  squared: mean over sequences of the token
    sum of x^2;  variance: token-weighted mean of the biased variance *within* a sequence, or with
    `pooled` the biased variance over all tokens.
    """

    def __init__(self, in_features: int, device: torch.device, *, pooled: bool = False) -> None:
        self.total = torch.zeros(in_features, device=device)
        self.norm = InputNorm(in_features, device)
        self.within = torch.zeros(in_features, device=device)
        self.tokens = 0
        self.pooled = pooled

    def update(self, inputs: Tensor) -> None:
        sequences = per_sequence(inputs)
        length = sequences.shape[1]
        variances = sequences.var(dim=1, correction=0)
        for total, variance in zip(sequences.sum(dim=1), variances, strict=True):
            n = self.norm.sequences
            seen = self.tokens
            if seen == 0:
                self.within.copy_(variance)
            else:
                self.within.copy_((self.within * seen + variance * length) / (seen + length))
            self.tokens = seen + length
            self.total *= n / (n + 1)
            self.total += total / (n + 1)
            self.norm.sequences = n + 1
        self.norm.sequences -= sequences.shape[0]
        self.norm.update(sequences)

    @property
    def squared(self) -> Tensor:
        return self.norm.squared

    @property
    def variance(self) -> Tensor:
        if not self.pooled:
            return self.within
        length = self.tokens / self.norm.sequences
        return self.squared / length - (self.total / length) ** 2


class Hessian(Statistic):
    """H = (2/N) X^T X, fp32 (I, I)  (SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device)
        self.sequences = 0

    def update(self, inputs: Tensor) -> None:
        sequences = per_sequence(inputs)
        n, count = self.sequences, sequences.shape[0]
        self.sequences = n + count
        tokens = sequences.flatten(0, 1) * (2 / self.sequences) ** 0.5
        add_gram_(self.matrix, tokens, decay=n / self.sequences)


def add_gram_(matrix: Tensor, tokens: Tensor, *, decay: float, strips: int = 4) -> None:
    """matrix := decay * matrix + tokens^T tokens, writing the lower block triangle only.

    `symmetrise_` fills the rest once at the end: with four strips this saves three eighths of the
    multiplications of a full product.  matrix (I, I), tokens (n, I), both fp32.
    """
    columns = matrix.shape[0]
    width = -(-columns // strips)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        matrix[start:end, :end].addmm_(tokens[:, start:end].T, tokens[:, :end], beta=decay)


def symmetrise_(matrix: Tensor) -> Tensor:
    """Copy the lower triangle onto the upper one, in place."""
    columns = matrix.shape[0]
    width = 1024  # a tile, so that no second matrix is allocated
    for start in range(0, columns, width):
        end = min(start + width, columns)
        diagonal = matrix[start:end, start:end]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)
        matrix[start:end, end:] = matrix[end:, start:end].T
    return matrix

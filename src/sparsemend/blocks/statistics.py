"""Statistics of a linear's inputs for pruners and training-free repair: init, update, value.

All accumulate in fp32 and average over *sequences*, as the reference codes do.  There is one rule
for sums: each sequence is reduced by itself and added in order, with a running rescale, also when
several arrive in one batch.  So no bit of a statistic depends on how its sequences were batched.
Shapes: B sequences, T tokens, I inputs.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemend.blocks.precision import sums_dtype
from sparsemend.errors import NotFinite

log = logging.getLogger(__name__)

RETRIED = 0.1  # the least damping of a second try, that of RIA's copy of SparseGPT


class Statistic(ABC):
    """Accumulates over calls of one linear."""

    @abstractmethod
    def update(self, inputs: Tensor) -> None:
        """Add the inputs (B, T, I), or (T, I) for one sequence, of one call."""

    @property
    def bytes(self) -> int:
        """The bytes of its tensors."""
        values = vars(self).values()
        inner = sum(value.bytes for value in values if isinstance(value, Statistic))
        return inner + sum(value.nbytes for value in values if isinstance(value, Tensor))

    def to_(self, device: torch.device) -> None:
        """Move its tensors to `device`."""
        for name, value in vars(self).items():
            if isinstance(value, Statistic):
                value.to_(device)
            elif isinstance(value, Tensor):
                setattr(self, name, value.to(device))


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
        for sequence in per_sequence(inputs):
            n, norm = self.sequences, torch.linalg.vector_norm(sequence, dim=0)
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
        for n, sequence in enumerate(sequences, start=self.norm.sequences):
            seen, self.tokens = self.tokens, self.tokens + length
            variance = sequence.var(dim=0, correction=0)
            self.within = (self.within * seen + variance * length) / self.tokens
            self.total *= n / (n + 1)
            self.total += sequence.sum(dim=0) / (n + 1)
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


@dataclass(frozen=True)
class InverseFactor:
    """H^-1 = U^T U with U upper triangular; H damped, and with 1 for the diagonal of dead inputs.

    unit (I, I): U with each row divided by its diagonal entry;  diagonal (I,): diag(U);
    dead (I,) bool: inputs that were zero throughout.  All fp32.
    """

    unit: Tensor
    diagonal: Tensor
    dead: Tensor


class HeldFactor(Statistic):
    """The inverse factor of a Hessian of which nothing more is observed, in as much room as it.

    damping: the one it was computed with.
    """

    def __init__(self, factor: InverseFactor, damping: float) -> None:
        self.unit, self.diagonal, self.dead = factor.unit, factor.diagonal, factor.dead
        self.damping = damping

    def update(self, inputs: Tensor) -> None:
        raise RuntimeError("a Hessian whose factor is held takes no more inputs")

    def inverse_factor(self, damping: float) -> InverseFactor:
        """As `Hessian.inverse_factor`, for the one damping."""
        if damping != self.damping:
            raise ValueError(f"the factor that is held has damping {self.damping}, not {damping}")
        return InverseFactor(self.unit, self.diagonal, self.dead)


class Hessian(Statistic):
    """H = (2/N) X^T X, fp32 (I, I)  (SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774).

    Only the lower triangle of `matrix` is kept up to date; `symmetrise_` fills the upper one.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device)
        self.sequences = 0
        self._factor: tuple[float, InverseFactor] | None = None

    def update(self, inputs: Tensor) -> None:
        self._factor = None
        for sequence in per_sequence(inputs):
            n = self.sequences
            self.sequences = n + 1
            add_gram_(self.matrix, sequence, decay=n / (n + 1), scale=2 / (n + 1))

    def inverse_factor(self, damping: float) -> InverseFactor:
        """The factor of H^-1 that OBS reads; computed once, as linears of one input share one H.

        damping: fraction of mean(diag H), taken after dead inputs got a 1, that is added to the
        diagonal.  Where H is not positive definite even so, 0.1 is tried, or `damping` if that is
        more, then the same in fp64.
        """
        if self._factor is None or self._factor[0] != damping:
            self._factor = (damping, _inverse_factor(self.matrix, damping))
        return self._factor[1]


def _inverse_factor(matrix: Tensor, damping: float) -> InverseFactor:
    if not matrix.diagonal().isfinite().all():
        raise NotFinite("the Hessian is not finite: an input of this linear is NaN or overflows")
    dead = matrix.diagonal() == 0
    # The reference code fails at its 0.01; retrying at 0.1 is what RIA's copy of it does
    # (Zhang et al. 2024).
    most = max(damping, RETRIED)
    ladder = [(damping, torch.float32), (most, torch.float32), (most, sums_dtype(matrix.device))]
    for fraction, dtype in dict.fromkeys(ladder):
        damped = matrix.to(dtype, copy=True)
        diagonal = damped.diagonal()
        diagonal.masked_fill_(dead, 1)
        diagonal += fraction * diagonal.mean()
        factor = _upper_factor_of_inverse(damped)
        if factor is not None:
            factor = factor.to(matrix.dtype)
            scale = factor.diagonal().clone()
            return InverseFactor(factor.div_(scale.unsqueeze(1)), scale, dead)
        log.warning(
            "Hessian of %d inputs: not positive definite with damping %g in %s, trying harder",
            matrix.shape[0],
            fraction,
            dtype,
        )
    raise ValueError(f"the Hessian is not positive definite with damping {most:g} in fp64")


def _upper_factor_of_inverse(matrix: Tensor) -> Tensor | None:
    """U (I, I) with matrix^-1 = U^T U, or None if the matrix is not positive definite.

    Reads the lower triangle.  The Cholesky factor of the matrix in reversed order, reversed back,
    is R upper with matrix = R R^T, so that U = R^-1: one factorisation and a triangular inverse
    give what the authors' code takes from two factorisations and an inverse, with less rounding.
    """
    lower, failure = torch.linalg.cholesky_ex(matrix.flip(0, 1).T)
    if failure.item():
        return None
    return _inverse_of_lower(lower).flip(0, 1)


def _inverse_of_lower(lower: Tensor, *, strips: int = 8) -> Tensor:
    """Inverse (I, I) of a lower triangular matrix, in strips that skip the zeros above them."""
    columns = lower.shape[0]
    width = -(-columns // strips)
    inverse = torch.zeros_like(lower)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        unit = torch.eye(columns - start, end - start, dtype=lower.dtype, device=lower.device)
        corner = lower[start:, start:]
        inverse[start:, start:end] = torch.linalg.solve_triangular(corner, unit, upper=False)
    return inverse


def add_gram_(
    matrix: Tensor, tokens: Tensor, *, decay: float, scale: float = 1.0, strips: int = 8
) -> None:
    """matrix := decay * matrix + scale * tokens^T tokens, writing the lower block triangle only.

    `symmetrise_` fills the rest once at the end: eight strips save seven sixteenths of the
    multiplications of a full product.  matrix (I, I), tokens (n, I), both fp32.
    """
    columns = matrix.shape[0]
    width = -(-columns // strips)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        matrix[start:end, :end].addmm_(
            tokens[:, start:end].T, tokens[:, :end], beta=decay, alpha=scale
        )


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

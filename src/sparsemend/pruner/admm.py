"""ADMM: alternate between the layer's least squares and the sparse weights nearest to it.

Boza 2024, "Fast and Effective Weight Update for Pruned Large Language Models", arXiv 2401.02938.
With G = X^T X, d = sqrt(diag G), V = W d (columns scaled) and Gs = G / (d d^T) + damping, repeat

    keep = highest |V + U|      Z = (V + U) * keep      U += V - Z      V = (V0 Gs + rho (Z - U)) K

where K = (Gs + rho I)^-1 and V0 is the dense V; the new weight is (V + U) * keep / d.  The support
moves during the first `mask_iterations` and then stays while the weights settle.  With `mask`, a
pruner of its own, that one chooses the support and nothing moves it: the paper's weight update.

Paper and authors' code differ in how fast the sparsity grows: the paper follows a cubic ramp; the
code (`ramp=auto`) does so within rows and for N:M, but takes the full sparsity at once over a whole
matrix.  It supports 2:4 only; here the same ramp removes the M - N candidates of every M inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Hessian, Statistic, symmetrise_
from sparsemend.errors import NotFinite
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import (
    checked_finite,
    lowest_of_all,
    lowest_over_rows,
    lowest_per_group,
    lowest_per_row,
)

# (scores (O, I), share of the final zeros to remove by now) -> removal mask, bool (O, I)
ChooseShare = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class System:
    """Scaled least squares of one input: scale d (I,), gram Gs (I, I), inverse K (I, I), fp32."""

    scale: Tensor
    gram: Tensor
    inverse: Tensor


class Gram(Hessian):
    """G = X^T X, a plain sum over tokens, solved once for all linears of one input.

    beside: another statistic of the same inputs, None if there is none.
    """

    def __init__(
        self, in_features: int, device: torch.device, beside: Statistic | None = None
    ) -> None:
        super().__init__(in_features, device)
        self.beside = beside
        self._system: tuple[tuple[float, float], System] | None = None

    def update(self, inputs: Tensor) -> None:
        self._system = None
        super().update(inputs)
        if self.beside is not None:
            self.beside.update(inputs)

    def scale(self) -> Tensor:
        """d = sqrt(diag G) + 1e-8 (I,), the 1e-8 as in the authors' code."""
        return (self.matrix.diagonal() * (self.sequences / 2)).sqrt() + 1e-8

    def system(self, damping: float, rho: float) -> System:
        """The system that ADMM solves; damping is a fraction of the scaled G's mean diagonal."""
        if self._system is None or self._system[0] != (damping, rho):
            self._system = ((damping, rho), self._solve(damping, rho))
        return self._system[1]

    def _solve(self, damping: float, rho: float) -> System:
        if not self.matrix.diagonal().isfinite().all():
            raise NotFinite("X^T X is not finite: an input of this linear is NaN or overflows")
        scale = self.scale()
        gram = symmetrise_(self.matrix.clone()).mul_(self.sequences / 2)
        gram.div_(scale).div_(scale.unsqueeze(1))
        gram.diagonal().add_(damping * gram.diagonal().mean())
        shifted = gram.clone()
        shifted.diagonal().add_(rho)  # eigenvalues of rho and more: Cholesky cannot fail
        return System(scale, gram, torch.cholesky_inverse(torch.linalg.cholesky(shifted)))


class HeldSystem(Statistic):
    """The system of a Gram of which nothing more is observed, in twice its room.

    damping, rho: those it was solved with.  beside: as Gram's.
    """

    def __init__(
        self, system: System, damping: float, rho: float, beside: Statistic | None
    ) -> None:
        self.d, self.gram, self.inverse = system.scale, system.gram, system.inverse
        self.solved_with = (damping, rho)
        self.beside = beside

    def update(self, inputs: Tensor) -> None:
        raise RuntimeError("a Gram whose system is held takes no more inputs")

    def scale(self) -> Tensor:
        """As `Gram.scale`."""
        return self.d

    def system(self, damping: float, rho: float) -> System:
        """As `Gram.system`, for the one damping and rho."""
        if (damping, rho) != self.solved_with:
            raise ValueError(
                f"the system that is held has damping and rho {self.solved_with}, not "
                f"{(damping, rho)}"
            )
        return System(self.d, self.gram, self.inverse)


@dataclass(kw_only=True)
class ADMM(Pruner):
    """Chooses the support and updates the weights that stay."""

    takes_gram: ClassVar[bool] = True

    iterations: int
    mask_iterations: int
    ramp: Literal["auto", "cubic", "none"]
    group: Literal["layer", "row"]
    rho: float
    damping: float
    mask: Pruner | None

    def __post_init__(self) -> None:
        if self.group not in ("layer", "row"):
            raise ValueError(f"group {self.group!r} is not one of: layer, row")
        if self.ramp not in ("auto", "cubic", "none"):
            raise ValueError(f"ramp {self.ramp!r} is not one of: auto, cubic, none")
        if not 0 <= self.mask_iterations <= self.iterations:
            raise ValueError(
                f"mask_iterations {self.mask_iterations} is not in [0, iterations = "
                f"{self.iterations}]"
            )
        if self.iterations < 1:
            raise ValueError(f"iterations {self.iterations} is not at least 1")
        if not self.rho > 0:
            raise ValueError(f"rho {self.rho} is not above 0; the authors use 1")
        if not self.damping >= 0:
            raise ValueError(f"damping {self.damping} is not at least 0")

    def statistic(self, in_features: int, device: torch.device) -> Gram:
        """X^T X of the inputs, with what the pruner of `mask` needs beside it."""
        beside = None if self.mask is None else self.mask.statistic(in_features, device)
        return Gram(in_features, device, beside)

    def settle(self, statistic: Statistic) -> HeldSystem:
        """The system that no rate changes in the place of its Gram."""
        gram = _gram(statistic)
        beside = gram.beside
        if self.mask is not None and beside is not None:
            beside = self.mask.settle(beside)
        return HeldSystem(gram.system(self.damping, self.rho), self.damping, self.rho, beside)

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        pattern = pattern.at(sparsity)
        nothing_goes = sparsity <= 0 if pattern.unstructured else pattern.kept == pattern.group_size
        if nothing_goes:
            return Pruned(weight, torch.ones_like(weight, dtype=torch.bool))
        if self.mask is not None:
            support = self.mask(weight, _gram(statistic).beside, sparsity, pattern)
            return self._prune(weight, statistic, lambda *_: ~support.keep)
        ramped = self._ramps(pattern)
        return self._prune(
            weight, statistic, partial(self._removal_mask, sparsity, pattern), ramped=ramped
        )

    def exactly(self, weight: Tensor, statistic: Statistic | None, zeros: int) -> Pruned:
        if not zeros:
            return Pruned(weight, torch.ones_like(weight, dtype=torch.bool))
        if self.mask is not None:
            support = self.mask.exactly(weight, _gram(statistic).beside, zeros)
            return self._prune(weight, statistic, lambda *_: ~support.keep)
        lowest = lowest_over_rows if self.group == "row" else lowest_of_all
        return self._prune(
            weight,
            statistic,
            lambda s, share: lowest(s, int(zeros * share)),
            ramped=self._ramps(Pattern()),
        )

    def _ramps(self, pattern: Pattern) -> bool:
        """Whether the sparsity grows over the first iterations instead of starting in full."""
        if self.ramp == "auto":
            return self.group == "row" or not pattern.unstructured
        return self.ramp == "cubic"

    def _prune(
        self,
        weight: Tensor,
        statistic: Statistic | None,
        choose: ChooseShare,
        *,
        ramped: bool = False,
    ) -> Pruned:
        """Weights and support by alternation; `choose` gets shares below 1 where it is ramped."""
        system = _gram(statistic).system(self.damping, self.rho)
        dense = checked_finite(weight.float() * system.scale)
        final, removed = self._alternate(dense, system, choose, ramped=ramped)
        pruned = (final / system.scale).to(weight.dtype).masked_fill_(removed, 0)
        return Pruned(pruned, ~removed)

    def score(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """The score (O, I), fp32, of `mask`, or |W| d, which the first iteration compares."""
        if self.mask is not None:
            return self.mask.score(weight, _gram(statistic).beside)
        return checked_finite(weight.float().abs() * _gram(statistic).scale())

    def _alternate(
        self, dense: Tensor, system: System, choose: ChooseShare, *, ramped: bool
    ) -> tuple[Tensor, Tensor]:
        """(scaled weight, removed), both (O, I), from the scaled dense weight."""
        fitted, dual = dense.clone(), torch.zeros_like(dense)
        target = dense @ system.gram
        removed = choose(dense.abs(), 1.0)
        for iteration in range(self.iterations):
            if iteration < self.mask_iterations:
                share = self._share(iteration) if ramped else 1.0
                removed = choose((fitted + dual).abs_(), share)
            sparse = (fitted + dual).masked_fill_(removed, 0)
            dual += fitted
            dual -= sparse
            torch.mm(torch.add(target, sparse - dual, alpha=self.rho), system.inverse, out=fitted)
        return (fitted + dual).masked_fill_(removed, 0), removed

    def _share(self, iteration: int) -> float:
        """Share of the final zeros that iteration (0-based) removes: 1 - (1 - (t+1)/T)^3."""
        return 1 - (1 - (iteration + 1) / self.mask_iterations) ** 3

    def _removal_mask(
        self, sparsity: float, pattern: Pattern, score: Tensor, share: float
    ) -> Tensor:
        if pattern.unstructured:
            if self.group == "row":
                return lowest_per_row(score, int(score.shape[1] * sparsity * share))
            return lowest_of_all(score, int(score.numel() * sparsity * share))
        candidates = lowest_per_group(score, pattern)
        if share == 1:
            return candidates
        count = int(int(candidates.count_nonzero()) * share)
        return lowest_of_all(score.masked_fill(~candidates, torch.inf), count)


def _gram(statistic: Statistic | None) -> Gram | HeldSystem:
    if not isinstance(statistic, Gram | HeldSystem):
        raise TypeError(f"ADMM needs a Gram, got {type(statistic).__name__}")
    return statistic

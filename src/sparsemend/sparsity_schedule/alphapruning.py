"""AlphaPruning: matrices whose spectrum is heavier-tailed stay denser.

alpha of a matrix: exponent of a power law fitted to its largest eigenvalues (squared singular
values).  m_b is the plain mean of the alphas of block b's linears and scales its rate:

    u_b = (m_b - min m) / (max m - min m) * 2 epsilon + 1 - epsilon,   s_b = u_b S sum n / sum(n u)

Lu et al. 2024, "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise
Pruning of Large Language Models", arXiv 2410.10912.  The largest rate is (1 + epsilon) /
(1 - epsilon) times the smallest.  The authors' code has no clamp and fails where a rate exceeds 1.
Eigenvalues are those of the Gram matrix of a weight's smaller side, in fp64, where the code takes
fp32 singular values: a third of the time, and more digits.  They are computed on the device of the
calibration; on a GPU their last digits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.blocks.names import saved_name
from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.residency import visit_linears
from sparsemend.blocks.statistics import add_gram_
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.selection import checked_finite
from sparsemend.sparsity_schedule.alphapruning_checks import check_options
from sparsemend.sparsity_schedule.rates.budget import unit_interval, weighted_mean
from sparsemend.sparsity_schedule.rates.power_law import alpha_mid, alpha_peak
from sparsemend.sparsity_schedule.rates.units import Units
from sparsemend.sparsity_schedule.scored import ScoredSchedule

STRIP = 1024  # rows of a matrix that are in fp64 at a time


@dataclass(kw_only=True)
class AlphaPruning(ScoredSchedule):
    """Rates from power-law exponents of the weights alone.

    bins below 1 is a share of a linear's eigenvalues: the code's 100 are for some 4096, and leave a
    peak to chance where a linear has a few hundred.
    """

    spread: float
    metric: str
    lower_bound: str
    bins: float
    weight_dtype: str

    def __post_init__(self) -> None:
        check_options(vars(self))

    def measure(self, model: nn.Module, calibration: Calibration) -> list[float]:
        """Mean alpha of every unit."""
        alphas = {
            name: self._alpha(saved_name(model, name), calibration.bring(linear.weight))
            for name, linear in visit_linears(model, what="spectra")
        }
        units = Units.of(model, self.granularity).members.values()
        return [sum(alphas[name] for name in names) / len(names) for names in units]

    def rates(
        self, scores: Sequence[float], weights: Sequence[int], sparsity: float
    ) -> list[float]:
        return rescale(scores, weights, sparsity, self.spread)

    @torch.no_grad()
    def _alpha(self, name: str, weight: Tensor) -> float:
        if self.weight_dtype == "float16":
            weight = weight.half()
        try:
            # few numbers, which the fit asks for singly
            spectrum = eigenvalues(checked_finite(weight.float())).cpu()
            if self.metric == "alpha_mid":
                return alpha_mid(spectrum)
            return alpha_peak(
                spectrum, logarithmic_bound=self.lower_bound == "reference", bins=self.bins
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def eigenvalues(matrix: Tensor) -> Tensor:
    """Squared singular values that are not zero, ascending, (<= min(O, I),), in its dtype.

    Each is off by some 1e-16 of the largest, where the square of an fp32 singular value is off by
    1e-7 of the geometric mean of both.  One below min(O, I) * 2e-16 of the largest is what rounding
    leaves of a zero, and counts as zero.
    """
    if sums_dtype(matrix.device) != torch.float64:
        matrix = matrix.cpu()
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    side = tall.shape[1]
    gram = torch.zeros(side, side, dtype=torch.float64, device=matrix.device)
    for strip in tall.split(STRIP):
        add_gram_(gram, strip.double(), decay=1.0)
    squared = torch.linalg.eigvalsh(gram)  # of the lower triangle
    least = side * torch.finfo(squared.dtype).eps * squared[-1]
    return squared[squared > least].to(matrix.dtype)


def rescale(
    scores: Sequence[float], weights: Sequence[int], sparsity: float, spread: float
) -> list[float]:
    """s_b = u_b S sum n / sum(n u): larger scores lose more, the weighted mean is exact."""
    u = [share * 2 * spread + (1 - spread) for share in unit_interval(scores)]
    scale = sparsity / weighted_mean(u, weights)
    return [value * scale for value in u]

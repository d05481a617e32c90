"""DLP: blocks whose scores are small as a whole stay denser.

    m_b = median(A),   I_b = 1 - m_b / sum(m),   A = |W_ij| * ||X_j||_2 of all linears of block b
    s_b = 1 - (t_b - mean(t) + 1 - S),   t_b = (I_b - min I) / (max I - min I) * 2 alpha

Chen et al. 2025, "DLP: Dynamic Layerwise Pruning in Large Language Models", arXiv 2505.23807.  The
paper reduces by the median; the released code takes the mean unless the pattern is N:M, whatever
its option says.  `torch.quantile` fails above 16 M elements; selection does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.selection import kth_lowest
from sparsemend.sparsity_schedule.dlp_checks import check_options
from sparsemend.sparsity_schedule.rates.budget import centre, unit_interval
from sparsemend.sparsity_schedule.scored import ScoredSchedule, reduce_scores


@dataclass(kw_only=True)
class Dlp(ScoredSchedule):
    """Rates from the median (or mean) score."""

    spread: float
    reduction: str

    def __post_init__(self) -> None:
        check_options(vars(self))

    @property
    def needs_calibration(self) -> bool:
        return True

    def measure(self, model: nn.Module, calibration: Calibration) -> list[float]:
        """m of every unit."""
        reduce = pooled_median if self.reduction == "median" else pooled_mean
        return reduce_scores(model, calibration, reduce, granularity=self.granularity)

    def rates(
        self, scores: Sequence[float], weights: Sequence[int], sparsity: float
    ) -> list[float]:
        total = sum(scores)
        importance = [1 - score / total if total else 0.0 for score in scores]
        return centre(unit_interval(importance), 2 * self.spread, sparsity, weights)


def pooled_median(scores: list[Tensor]) -> float:
    """Median of all entries; of an even number the lower one, as torch.median."""
    pooled = torch.cat([score.flatten() for score in scores])
    return float(kth_lowest(pooled.unsqueeze(0), (len(pooled) + 1) // 2))


def pooled_mean(scores: list[Tensor]) -> float:
    """Mean of all entries, summed in float64."""
    count = sum(score.numel() for score in scores)
    return sum(float(score.sum(dtype=sums_dtype(score.device))) for score in scores) / count

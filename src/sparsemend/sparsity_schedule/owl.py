"""OWL: blocks with more outliers among their scores stay denser.

    D_b = 100 * #{A > M mean(A)} / #A,   A = |W_ij| * ||X_j||_2 of all linears of block b
    t_b = (D_b - min D) / (max D - min D) * 2 lambda,   s_b = 1 - (t_b - mean(t) + 1 - S)

Yin et al. 2024, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs
to High Sparsity", arXiv 2310.05175.  The rates span exactly 2 lambda.  Deviation: means over blocks
are weighted by parameters, which changes nothing where blocks are of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.walk import Calibration
from sparsemend.sparsity_schedule.owl_checks import check_options
from sparsemend.sparsity_schedule.rates.budget import centre, unit_interval
from sparsemend.sparsity_schedule.scored import ScoredSchedule, reduce_scores


@dataclass(kw_only=True)
class Owl(ScoredSchedule):
    """Rates from the share of scores beyond `outlier_multiple` times their mean."""

    outlier_multiple: float
    spread: float

    def __post_init__(self) -> None:
        check_options(vars(self))

    @property
    def needs_calibration(self) -> bool:
        return True

    def measure(self, model: nn.Module, calibration: Calibration) -> list[float]:
        """D of every unit, percent."""
        return reduce_scores(
            model,
            calibration,
            lambda scores: outlier_percent(scores, self.outlier_multiple),
            granularity=self.granularity,
        )

    def rates(
        self, scores: Sequence[float], weights: Sequence[int], sparsity: float
    ) -> list[float]:
        return centre(unit_interval(scores), 2 * self.spread, sparsity, weights)


def outlier_percent(scores: list[Tensor], multiple: float) -> float:
    """100 * share of all entries strictly above `multiple` times their pooled mean."""
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=sums_dtype(score.device))) for score in scores) / count
    outliers = sum(int((score > multiple * mean).count_nonzero()) for score in scores)
    return 100 * outliers / count

"""Block rates from the similarity of the blocks' inputs, free of torch.

    q_i = sum_{j != i} C_ij     p_i = q_i / sum_k q_k     c_i = exp(-beta p_i)

    minimise   sum_i w_i c_i x_i
    subject to sum_i w_i x_i = s sum_i w_i,   l_i <= x_i <= u_i

C (L, L) is the similarity, w_i the share of block i in the weights: a block like the others is
redundant and loses more.  Huang et al. 2025, LoSA, arXiv 2502.14816; weights w are ours, for models
whose blocks differ in size (the paper has w = 1).  The linear program is a fractional knapsack and
solved exactly; `slsqp` is the reference's solver, which stops before the optimum.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

SOLVERS = ("lp", "slsqp")
# LoSA reference code: (mean rate, half the width of the band of rates up to that mean)
DELTAS = ((0.5, 0.01), (0.6, 0.02), (0.7, 0.03))
Vector = Sequence[float]


def delta_of(target: float, previous: float | None = None) -> float:
    """How far a block's rate may be from `target`: 0.01 up to 0.5, 0.02 up to 0.6, 0.03 up to 0.7.

    Above, the reference code has no rule and keeps the value of the round before (`previous`);
    where there was none, 0.03.
    """
    for limit, delta in DELTAS:
        if target <= limit:
            return delta
    return DELTAS[-1][1] if previous is None else previous


def importance(similarity: Sequence[Vector], beta: float) -> list[float]:
    """exp(-beta p_i) of every block, p_i its share of all similarity to the others.

    With one block, or blocks that resemble nothing, all are equally important.
    """
    redundancy = [
        math.fsum(value for j, value in enumerate(row) if j != i)
        for i, row in enumerate(similarity)
    ]
    total = math.fsum(redundancy)
    if not total:
        return [1.0] * len(redundancy)
    return [math.exp(-beta * value / total) for value in redundancy]


@dataclass(frozen=True)
class Band:
    """The constraints on block rates: weighted mean `target`, each rate between its two bounds.

    weights: parameters per block; floors: rates that blocks have already and cannot go below; most:
    what no rate may exceed.
    """

    target: float
    delta: float
    weights: Vector
    floors: Vector | None = None
    most: float = 1.0

    @property
    def lower(self) -> list[float]:
        least = max(0.0, self.target - self.delta)
        return [max(least, floor) for floor in self.floors or [0.0] * len(self.weights)]

    @property
    def upper(self) -> list[float]:
        most = min(self.most, self.target + self.delta)
        return [max(most, low) for low in self.lower]

    def mean(self, rates: Vector) -> float:
        return weighted_sum(rates, self.weights) / math.fsum(self.weights)

    def check(self) -> None:
        """Raise ValueError where blocks are sparser already than the target allows."""
        reached = self.mean(self.lower)
        if reached > self.target + 1e-12:
            raise ValueError(
                f"sparsity {self.target:.6f} is below what the blocks have reached already "
                f"({reached:.6f} is the least mean they can have); raise the target, or let it be "
                "exceeded with method.oversparsity=ignore"
            )


def weighted_sum(rates: Vector, weights: Vector) -> float:
    """sum_i w_i x_i."""
    return math.fsum(rate * weight for rate, weight in zip(rates, weights, strict=True))


def solve(band: Band, costs: Vector, solver: str) -> list[float]:
    """The rates of least weighted cost within the band, by one of SOLVERS."""
    band.check()
    return exact_rates(band, costs) if solver == "lp" else slsqp_rates(band, costs)


def exact_rates(band: Band, costs: Vector) -> list[float]:
    """The optimum of the linear program: the cheapest blocks are filled to their upper bound first.

    Of equally important blocks the earlier one counts as more important.  One without weights stays
    at its lower bound.
    """
    rates, upper, weights = band.lower, band.upper, band.weights
    left = band.target * math.fsum(weights) - weighted_sum(rates, weights)
    filled = [i for i, weight in enumerate(weights) if weight]
    for i in sorted(filled, key=lambda i: (costs[i], -i)):
        room = (upper[i] - rates[i]) * weights[i]
        if room >= left:
            rates[i] = min(upper[i], rates[i] + max(left, 0.0) / weights[i])
            break
        rates[i] = upper[i]
        left -= room
    return rates


def slsqp_rates(band: Band, costs: Vector) -> list[float]:
    """The rates SciPy's SLSQP ends at from a start at the upper bounds, as the reference calls it.

    Tolerances are SciPy's defaults; the rates are used even where SLSQP reports failure (which is
    logged).
    """
    import numpy as np
    from scipy.optimize import Bounds, minimize

    share = np.asarray(band.weights, dtype=np.float64)
    share = share / share.mean()
    slope = np.asarray(costs, dtype=np.float64) * share
    lower, upper = np.asarray(band.lower), np.asarray(band.upper)
    solution = minimize(
        lambda x: float(slope @ x),
        upper,
        jac=lambda x: slope,
        method="SLSQP",
        bounds=Bounds(lower, upper),
        constraints={"type": "eq", "fun": lambda x: float((share * x).mean() - band.target)},
    )
    if not solution.success:
        log.warning("SLSQP: %s; its rates are used all the same", solution.message)
    return [float(value) for value in np.clip(solution.x, lower, upper)]


def check_rule(prefix: str, *, samples: int, beta: float, delta: float | None, solver: str) -> None:
    """Raise ValueError on settings that no allocation can have; `prefix` names their config group.

    With one sequence the centred Gram matrix is zero; with two, all blocks' centred Gram matrices
    are multiples of one matrix.
    """
    if samples < 3:
        raise ValueError(
            f"{prefix}.similarity_samples {samples} is below 3, where every block resembles every "
            "other; the released code takes 64"
        )
    if not beta >= 0:
        raise ValueError(
            f"{prefix}.beta {beta} is below 0, where blocks that resemble the others would count "
            "as the more important ones; the released code takes 1 or 100"
        )
    if delta is not None and not 0 <= delta < 1:
        raise ValueError(f"{prefix}.delta {delta} is not in [0, 1)")
    if solver not in SOLVERS:
        raise ValueError(f"{prefix}.solver {solver!r} is not one of: {', '.join(SOLVERS)}")

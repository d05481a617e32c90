"""The plan of LoSA's rounds, free of torch: sparsities, steps, mean ranks, ranks, data slices.

    s_t = s - s (1 - t/T)^3                 the cubic ramp, t = 1..T
    r_t = r_1 + g (t - 1)                   the mean rank
    rank_i ~ e_i / sum_k e_k * r_t L        e_i: the error of block i's output

Huang et al. 2025, LoSA, arXiv 2502.14816, and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsemend.sparse.pattern import Pattern

REPAIRS = ("until_met", "single_pass")


def cubic_ramp(sparsity: float, rounds: int) -> list[float]:
    """The sparsity of every round; the last is `sparsity` exactly."""
    return [sparsity - sparsity * (1 - t / rounds) ** 3 for t in range(1, rounds + 1)]


def round_targets(targets: Sequence[float] | None, sparsity: float, rounds: int) -> list[float]:
    """The cubic ramp, or `targets`; raises ValueError unless those rise to `sparsity`."""
    if targets is None:
        return cubic_ramp(sparsity, rounds)
    if len(targets) != rounds:
        raise ValueError(
            f"method.targets has {len(targets)} sparsities for method.rounds={rounds}; "
            "give one each"
        )
    reached = 0.0
    for number, target in enumerate(targets, start=1):
        if not 0 <= target < 1:
            raise ValueError(f"method.targets: {target} of round {number} is not in [0, 1)")
        if target < reached:
            raise ValueError(
                f"method.targets: {target} of round {number} is below the {reached} that the round "
                "before has reached, and what is pruned stays pruned; give rising sparsities"
            )
        reached = target
    if abs(targets[-1] - sparsity) > 1e-9:
        raise ValueError(
            f"method.targets ends at {targets[-1]}, not at sparsity={sparsity}; set sparsity="
            f"{targets[-1]} or the last of method.targets to {sparsity}"
        )
    return list(targets)


def round_steps(steps: Sequence[int] | None, max_steps: int, rounds: int) -> list[int]:
    """Optimizer steps of every round, `max_steps` in all; raises ValueError otherwise.

    Without `steps` the rounds get equal shares, within one step of each other.
    """
    if steps is None:
        if max_steps < rounds:
            raise ValueError(
                f"method.max_steps={max_steps} is less than a step for each of method.rounds="
                f"{rounds}; raise max_steps or lower rounds"
            )
        return [max_steps * (t + 1) // rounds - max_steps * t // rounds for t in range(rounds)]
    if len(steps) != rounds or min(steps) < 1 or sum(steps) != max_steps:
        raise ValueError(
            f"method.round_steps={list(steps)} are not {rounds} positive counts that add up to "
            f"method.max_steps={max_steps}; set method.max_steps={sum(steps)} if those are meant"
        )
    return list(steps)


@dataclass(frozen=True)
class RankPlan:
    """mean: per block in the first round; growth: added in each later one; repair: one of REPAIRS.

    The formula's ranks are kept within [least, most].
    """

    mean: float
    growth: float
    least: int
    most: int
    repair: str

    def means(self, rounds: int) -> list[float]:
        return [self.mean + self.growth * t for t in range(rounds)]

    def check(self, rounds: int) -> None:
        """Raise ValueError where a round's mean rank lies outside the limits."""
        if self.least < 1 or self.most < self.least:
            raise ValueError(
                f"method.min_rank={self.least} and method.max_rank={self.most} are not 1 <= "
                "min_rank <= max_rank"
            )
        for number, mean in enumerate(self.means(rounds), start=1):
            if mean < self.least:
                raise ValueError(
                    f"the mean rank {mean:g} of round {number} is below method.min_rank="
                    f"{self.least}; raise method.mean_rank or lower method.min_rank"
                )
            if mean > self.most:
                raise ValueError(
                    f"the mean rank {mean:g} of round {number} is above method.max_rank="
                    f"{self.most}; lower method.mean_rank or method.rank_growth, or raise "
                    "method.max_rank"
                )


def allocate_ranks(errors: Sequence[float], mean: float, plan: RankPlan) -> list[int]:
    """A rank per block in proportion to its error, `mean` on average where the limits allow.

    Shares are rounded half to even; then single ranks are taken from the blocks of least error or
    added to those of largest error, in one pass as in the released code (`single_pass`, which
    misses the budget where limits cut much) or until the budget is met.  Ties go to the earlier
    block.  Raises ValueError on an error that is NaN or infinite.
    """
    bad = [index for index, error in enumerate(errors) if not math.isfinite(error)]
    if bad:
        raise ValueError(
            f"the error of block {bad[0]} against the dense model is {errors[bad[0]]}, so no rank "
            "follows from it: outputs of one of the two are not finite; set model.dtype=float32 or "
            "lower method.learning_rate"
        )
    total = sum(errors)
    shares = [e / total for e in errors] if total else [1 / len(errors)] * len(errors)
    budget = round(mean * len(errors))
    # round() is half to even
    ranks = [min(max(round(s * mean * len(errors)), plan.least), plan.most) for s in shares]
    while missing := budget - sum(ranks):
        step, limit = (1, plan.most) if missing > 0 else (-1, plan.least)
        order = sorted(range(len(ranks)), key=lambda i: -step * errors[i])
        movable = [i for i in order if ranks[i] != limit][: abs(missing)]
        for i in movable:
            ranks[i] += step
        if plan.repair == "single_pass" or not movable:
            break
    return ranks


def check_slices(
    slices: Sequence[Sequence[int]] | None, rounds: int, rows: int | None = None
) -> None:
    """Raise ValueError unless there is one [first, end) of `rows` training rows for every round."""
    if slices is None:
        return
    if len(slices) != rounds or any(len(s) != 2 or not 0 <= s[0] < s[1] for s in slices):
        raise ValueError(
            f"method.data_slices={[list(s) for s in slices]} is not one [first, end) with "
            f"0 <= first < end for each of method.rounds={rounds}"
        )
    for number, (_, end) in enumerate(slices, start=1):
        if rows is not None and end > rows:
            raise ValueError(
                f"method.data_slices: round {number} reads up to row {end}, but there are {rows} "
                "training rows; shorten it, give more data, or set method.data_slices=null to "
                "spread the rounds over all rows"
            )


def check_fixed_pattern(pattern: Pattern, *, fixed: bool) -> None:
    """Raise ValueError unless the pattern is one that rounds of rising sparsity can have."""
    if pattern.unstructured:
        if fixed:
            raise ValueError(
                "method.fixed_pattern=true needs an N:M pattern, but pattern is unstructured; set "
                "pattern=2:4 sparsity=0.5 or method.fixed_pattern=false"
            )
    elif pattern.mixed or not fixed:
        fixable = "" if pattern.mixed else ", or method.fixed_pattern=true for it in every round"
        raise ValueError(
            f"method=losa raises the sparsity from round to round and block to block, which "
            f"pattern {pattern} does not allow; use pattern=unstructured{fixable}"
        )


def check_moments(state: str, optimizer: str) -> None:
    """Raise ValueError where moments are to be carried that cannot be resized."""
    if state == "carried" and optimizer != "adamw":
        raise ValueError(
            "method.optimizer_state=carried resizes AdamW's moments, not those of "
            f"{optimizer}; use method.optimizer=adamw or method.optimizer_state=fresh"
        )


def check_cap(cap: int | None, max_rank: int) -> None:
    """Raise ValueError unless the cap on ranks, if any, is in [1, max_rank]."""
    if cap is None:
        return
    if cap < 1:
        raise ValueError(f"method.rank_cap {cap} is below 1; null means no cap")
    if cap > max_rank:
        raise ValueError(
            f"method.rank_cap {cap} is above method.max_rank={max_rank}, beyond which no component "
            "is ever in use; lower it, or set null for no cap"
        )


def check_targets(targets: Sequence[float] | None, *, fixed: bool) -> None:
    """Raise ValueError where a fixed pattern is to have other sparsities than its own."""
    if fixed and targets is not None:
        raise ValueError(
            "method.fixed_pattern=true has the pattern's sparsity in every round; set "
            "method.targets=null"
        )


def check_update(scale: float, dropout: float, tile_rows: int) -> None:
    """Raise ValueError unless the low-rank update can be computed."""
    if not scale > 0:
        raise ValueError(f"method.scale {scale} is not above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"method.dropout {dropout} is not in [0, 1)")
    if tile_rows < 1:
        raise ValueError(f"method.tile_rows {tile_rows} is below 1")

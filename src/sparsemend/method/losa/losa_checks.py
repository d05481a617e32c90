"""What LoSA's rounds demand of pattern, steps, data and ranks (no torch)."""

from __future__ import annotations

import logging

from sparsemend.config.asked import Asked
from sparsemend.config.flags import says
from sparsemend.method.adapter.shapes import check_rank
from sparsemend.method.losa.plan import (
    RankPlan,
    check_fixed_pattern,
    check_slices,
    round_steps,
    round_targets,
)

log = logging.getLogger(__name__)


def check(asked: Asked) -> None:
    """Raise ValueError unless every round has a target, a rank, steps and data."""
    method, cfg = asked.section, asked.cfg
    rounds = method.rounds
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"method.rounds={rounds} is not an integer of at least 1; set 5")
    check_fixed_pattern(asked.pattern, fixed=method.fixed_pattern)
    round_targets(method.targets, cfg.sparsity, rounds)
    round_steps(method.round_steps, method.max_steps, rounds)
    check_slices(method.data_slices, rounds)
    ranks = (method.mean_rank, method.rank_growth, method.min_rank, method.max_rank)
    RankPlan(*ranks, method.rank_repair).check(rounds)
    if isinstance(method.max_rank, int):
        check_rank("method.max_rank", method.max_rank, asked.linears)
    if not says(cfg.sparsity_schedule, "uniform"):
        shapes = (
            "shapes only the one-shot model it is compared with"
            if method.prior_prune
            else "has no effect"
        )
        log.warning(
            "sparsity_schedule %s: this method sets the rate of every block itself, round by round",
            shapes,
        )

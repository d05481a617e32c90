"""The fields of LoSA, which the method and its rounds read."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemend.method.losa.plan import (
    REPAIRS,
    RankPlan,
    check_cap,
    check_moments,
    check_targets,
    check_update,
)
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparsity_schedule.rates.block_rates import check_rule
from sparsemend.training.plan import check_choice


@dataclass(kw_only=True)
class LosaSettings(TrainedRepair):
    """The knobs of conf/method/losa.yaml; raises ValueError on what cannot work together."""

    prior_prune: bool
    rounds: int
    targets: list[float] | None
    round_steps: list[int] | None
    data_slices: list[list[int]] | None
    similarity_samples: int
    beta: float
    delta: float | None
    solver: str
    oversparsity: str
    fixed_pattern: bool
    mean_rank: float
    rank_growth: float
    min_rank: int
    max_rank: int
    rank_cap: int | None
    rank_repair: str
    scale: float
    dropout: float
    tile_rows: int
    exact_base: bool
    optimizer_state: str
    measure_trained: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"method.rounds {self.rounds} is below 1")
        check_rule(
            "method",
            samples=self.similarity_samples,
            beta=self.beta,
            delta=self.delta,
            solver=self.solver,
        )
        check_choice("oversparsity", self.oversparsity, ("bound", "ignore"))
        check_choice("rank_repair", self.rank_repair, REPAIRS)
        check_choice("optimizer_state", self.optimizer_state, ("fresh", "carried"))
        check_moments(self.optimizer_state, self.optimizer)
        self.ranks.check(self.rounds)
        check_cap(self.rank_cap, self.max_rank)
        check_targets(self.targets, fixed=self.fixed_pattern)
        check_update(self.scale, self.dropout, self.tile_rows)

    @property
    def ranks(self) -> RankPlan:
        return RankPlan(
            self.mean_rank, self.rank_growth, self.min_rank, self.max_rank, self.rank_repair
        )

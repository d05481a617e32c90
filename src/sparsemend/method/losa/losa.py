"""LoSA: prune and repair in turns; block rates, ranks and supports move between the rounds.

In each of T rounds, from the dense model on: (1) the similarity of the blocks' inputs gives every
block its sparsity around the round's mean, which rises along a cubic ramp; (2) any pruner prunes
the effective weights W_eff = keep * (W + s B A), block by block; (3) the error of every block's
output against the dense model's gives it its rank; (4) the factors train on.  Huang et al. 2025,
"Dynamic Low-Rank Sparse Adaptation for Large Language Models", arXiv 2502.14816.

Deviations from the released code, each an option (conf/experiment/losa_released.yaml): ranks may
grow beyond 8, components that go are folded in, the linear program is solved exactly, and a block's
rate never falls below what it has reached, so that the mean sparsity is the target.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.data.base import Examples
from sparsemend.method.adapter.block_errors import ModelPair, output_errors, prune_and_compare
from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.adapter.low_rank import attach_adapters, check_ranks, factors, kaiming_start
from sparsemend.method.base import Workbench
from sparsemend.method.losa.linear import LosaLinear
from sparsemend.method.losa.plan import (
    REPAIRS,
    RankPlan,
    allocate_ranks,
    check_fixed_pattern,
    check_slices,
    round_steps,
    round_targets,
)
from sparsemend.method.losa.report import (
    block_records,
    block_zeros,
    by_block,
    mask_update,
    off_support,
    report_pruned,
    report_trained,
    totals,
)
from sparsemend.method.losa.rounds import (
    CarriedMoments,
    Progress,
    RoundMark,
    losa_linears,
    resize_moments,
    restore_dense_,
)
from sparsemend.method.trained import TrainedRepair
from sparsemend.pruner.base import Pruner
from sparsemend.rounding import apply_rounding
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.sparsity_schedule.rates.block_rates import (
    Band,
    check_rule,
    delta_of,
    importance,
    solve,
)
from sparsemend.sparsity_schedule.rates.by_block import block_allocation, block_weights
from sparsemend.sparsity_schedule.rates.similarity import block_similarity
from sparsemend.training.callbacks import VALIDATION_LOSS
from sparsemend.training.module import RepairModule
from sparsemend.training.objective import Objective
from sparsemend.training.plan import check_choice

log = logging.getLogger(__name__)

FILE = "rounds.pt"


@dataclass(frozen=True)
class Work:
    """The model under repair, its dense counterpart, the bench, and the objective of its steps."""

    model: PreTrainedModel
    dense: PreTrainedModel
    bench: Workbench
    objective: Objective

    @property
    def pair(self) -> ModelPair:
        bench = self.bench
        return ModelPair(self.model, self.dense, bench.calibration, bench.device, bench.offload)

    def pruner_and_rates(self, rates: Sequence[float]) -> tuple[Pruner, Allocation]:
        """The pruner, and the blocks' rates by linear, with the run's rounding."""
        mean = Band(0, 0, block_weights(self.model)).mean(rates)
        allocation = block_allocation(self.model, rates, mean)
        return apply_rounding(self.bench.rounding, self.bench.pruner, allocation)


@dataclass(kw_only=True)
class Losa(TrainedRepair):
    """T rounds of allocate, prune, re-rank, train; then the factors are folded in."""

    needs_calibration: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = True
    reallocates: ClassVar[bool] = True

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
        if self.optimizer_state == "carried" and self.optimizer != "adamw":
            raise ValueError(
                "method.optimizer_state=carried resizes AdamW's moments, not those of "
                f"{self.optimizer}; use method.optimizer=adamw or method.optimizer_state=fresh"
            )
        self.ranks.check(self.rounds)
        if self.rank_cap is not None and self.rank_cap < 1:
            raise ValueError(f"method.rank_cap {self.rank_cap} is below 1; null means no cap")
        if self.rank_cap is not None and self.rank_cap > self.max_rank:
            raise ValueError(
                f"method.rank_cap {self.rank_cap} is above method.max_rank={self.max_rank}, beyond "
                "which no component is ever in use; lower it, or set null for no cap"
            )
        if self.fixed_pattern and self.targets is not None:
            raise ValueError(
                "method.fixed_pattern=true has the pattern's sparsity in every round; set "
                "method.targets=null"
            )
        if not self.scale > 0:
            raise ValueError(f"method.scale {self.scale} is not above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"method.dropout {self.dropout} is not in [0, 1)")
        if self.tile_rows < 1:
            raise ValueError(f"method.tile_rows {self.tile_rows} is below 1")

    @property
    def ranks(self) -> RankPlan:
        return RankPlan(
            self.mean_rank, self.rank_growth, self.min_rank, self.max_rank, self.rank_repair
        )

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        check_ranks(model, self.max_rank, "max_rank")

    def check_train(self, train: Examples) -> None:
        check_slices(self.data_slices, self.rounds, len(train))

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        rank = self.rank_cap or round(self.mean_rank)
        generator = torch.Generator().manual_seed(bench.seed)

        def make(name: str, linear: SparseLinear) -> LosaLinear:
            settings = LorsSettings(
                self.scale, "exact_tiled", self.tile_rows, "float32", linear.weight.dtype
            )
            return LosaLinear(
                linear,
                kaiming_start(rank, linear.in_features, generator),
                settings,
                rank=rank,
                dropout=self.dropout,
                exact_base=self.exact_base,
                # as released, which is how a block can end above the rate it is asked for
                nested=self.oversparsity == "ignore",
            )

        attach_adapters(model, make)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return factors(model)

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        """Return the diagnostics; `rounds` has what each asked, reached and cost, by block."""
        check_fixed_pattern(bench.pattern, fixed=self.fixed_pattern)
        check_slices(self.data_slices, self.rounds, len(bench.train))
        steps = round_steps(self.round_steps, self.max_steps, self.rounds)
        torch.manual_seed(bench.seed)
        work = Work(model, bench.load_dense().eval(), bench, self.objective(bench))
        restore_dense_(model, work.dense)
        self.attach(model, bench)
        path = bench.parts / FILE
        progress = Progress.load(path, model, work.dense)
        while progress.round < self.rounds or not progress.trained:
            if progress.trained:
                self._prune(work, progress)
            else:
                self._train(work, progress, steps)
            progress.save(path, model, work.dense)
        assert progress.rates is not None
        _, asked = work.pruner_and_rates(progress.rates)
        return {**self._report(progress.records), **self.fold(model), "asked": asked}

    def _report(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        last = records[-1]
        return {
            **totals(records),
            "windows_per_step": last["windows_per_step"],
            VALIDATION_LOSS: last[VALIDATION_LOSS],
            "trained_parameters": max(record["trained_parameters"] for record in records),
            "rounds": records,
        }

    def _prune(self, work: Work, progress: Progress) -> None:
        """Run the next round up to its training: set rates, supports and ranks."""
        progress.round, progress.trained = progress.round + 1, False
        started = perf_counter()
        rates = self._rates(work, progress)
        allocated = perf_counter()
        before = {name: m.packed_keep.clone() for name, m in losa_linears(work.model).items()}
        pruner, allocation = work.pruner_and_rates(rates)
        errors = prune_and_compare(work.pair, pruner, allocation, work.bench.pattern)
        mean = self.ranks.means(self.rounds)[progress.round - 1]
        ranks = allocate_ranks(errors, mean, self.ranks)
        self._set_ranks(work, progress, ranks)
        record = {
            "round": progress.round,
            "target": allocation.target,
            "delta": progress.delta,
            "achieved": off_support(losa_linears(work.model)).sparsity,
            "mean_rank": mean,
            "seconds": {"allocate": allocated - started, "prune": perf_counter() - allocated},
            "blocks": block_records(work.model, before, rates, ranks, errors),
        }
        progress.records.append(record)
        report_pruned(record, self.rounds)

    def _rates(self, work: Work, progress: Progress) -> list[float]:
        """The blocks' sparsities in this round, around its target."""
        bench, weights = work.bench, block_weights(work.model)
        if self.fixed_pattern:
            progress.rates = [bench.pattern.sparsity] * len(weights)
            return progress.rates
        target = round_targets(self.targets, bench.sparsity, self.rounds)[progress.round - 1]
        similarity = block_similarity(
            work.model,
            bench.calibration,
            self.similarity_samples,
            device=bench.device,
            offload=bench.offload,
        )
        progress.delta = delta_of(target, progress.delta) if self.delta is None else self.delta
        reached = progress.rates or block_zeros(work.model)
        floors = reached if self.oversparsity == "bound" else None
        band = Band(target, progress.delta, weights, floors)
        progress.rates = solve(band, importance(similarity.tolist(), self.beta), self.solver)
        return progress.rates

    def _set_ranks(self, work: Work, progress: Progress, ranks: Sequence[int]) -> None:
        # a function of seed and round, so that a continued run draws what an undisturbed one does
        seed = (work.bench.seed * 1_000_003 + progress.round) * 101 + 1
        generator = torch.Generator().manual_seed(seed)
        for rank, linears in zip(ranks, by_block(work.model), strict=True):
            for linear in linears.values():
                capped = self.rank_cap is not None
                start = None if capped else kaiming_start(rank, linear.in_features, generator)
                linear.set_rank_(rank, start)
        progress.moments = resize_moments(progress.moments, work.model)

    def _train(self, work: Work, progress: Progress, steps: Sequence[int]) -> None:
        """Run one fit on the round's share of the data, resumed from where it was killed, if so."""
        model, bench, number = work.model, work.bench, progress.round
        home = next(model.parameters()).device
        parameters = self.free_trainable(model)
        carried = CarriedMoments(progress.moments)
        mark = RoundMark(number, sum(steps[: number - 1]), mask_update(progress.records[-1]))
        callbacks: list[Callback] = [*self.callbacks(), mark]
        if self.optimizer_state == "carried":
            callbacks.append(carried)
        module = self._module(work, callbacks, number, steps)
        checkpoint = bench.resume_from if RoundMark.of(bench.resume_from) == number else None
        started = perf_counter()
        fitted = module.fit(bench.make_trainer, out=bench.out, resume_from=checkpoint)
        trained = perf_counter()
        nn.Module.to(model, home)  # Lightning leaves it on the host
        model.requires_grad_(False).eval().zero_grad(set_to_none=True)
        progress.trained, progress.moments = True, carried.moments
        record = progress.records[-1]
        if self.measure_trained:
            for block, error in zip(record["blocks"], output_errors(work.pair), strict=True):
                block["error_trained"] = error
        record |= {**fitted, **module.objective.report(), "trained_parameters": parameters}
        record["seconds"] |= {"train": trained - started, "measure": perf_counter() - trained}
        report_trained(record, self.rounds)

    def _module(
        self, work: Work, callbacks: list[Callback], number: int, steps: Sequence[int]
    ) -> RepairModule:
        bench, train, seed = work.bench, work.bench.train, work.bench.seed
        first_step = sum(steps[: number - 1])  # all rounds together read what one long fit would
        if self.data_slices is not None:
            part = slice(*self.data_slices[number - 1])
            train, seed = Examples(train.tokens[part], train.labels[part]), seed + number
            first_step = 0
        return RepairModule(
            work.model,
            replace(self.plan, max_steps=steps[number - 1]),
            callbacks,
            self.make_optimizer,
            train,
            bench.validation,
            seed=seed,
            micro_batch=bench.micro_batch,
            first_step=first_step,
            objective=work.objective,
        )

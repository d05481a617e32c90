"""One round of LoSA: rates, supports and ranks are set for a model, then its factors train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from lightning.pytorch import Callback
from torch import nn
from transformers import PreTrainedModel

from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import Examples
from sparsemend.method.adapter.block_errors import ModelPair, output_errors, prune_and_compare
from sparsemend.method.adapter.low_rank import kaiming_start
from sparsemend.method.base import Workbench
from sparsemend.method.losa.plan import allocate_ranks, round_targets
from sparsemend.method.losa.progress import (
    CarriedMoments,
    Progress,
    RoundMark,
    losa_linears,
    resize_moments,
)
from sparsemend.method.losa.report import (
    block_records,
    block_zeros,
    by_block,
    mask_update,
    off_support,
    report_pruned,
    report_trained,
)
from sparsemend.method.losa.settings import LosaSettings
from sparsemend.method.losa.walks import merged_by_block
from sparsemend.pruner.base import Pruner
from sparsemend.rounding import apply_rounding
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.sparsity_schedule.rates.block_rates import Band, delta_of, importance, solve
from sparsemend.sparsity_schedule.rates.by_block import block_allocation, block_weights
from sparsemend.sparsity_schedule.rates.similarity import block_similarity
from sparsemend.training.module import RepairModule
from sparsemend.training.objective import Objective


@dataclass(frozen=True)
class Work:
    """The model under repair, its dense counterpart, the bench, and the objective of its steps."""

    model: PreTrainedModel
    dense: PreTrainedModel
    bench: Workbench
    objective: Objective

    @property
    def pair(self) -> ModelPair:
        return ModelPair(self.model, self.dense, self.bench.calibration)

    def pruner_and_rates(self, rates: Sequence[float]) -> tuple[Pruner, Allocation]:
        """The pruner, and the blocks' rates by linear, with the run's rounding."""
        mean = Band(0, 0, block_weights(self.model)).mean(rates)
        allocation = block_allocation(self.model, rates, mean)
        return apply_rounding(self.bench.rounding, self.bench.pruner, allocation)


class Rounds:
    """The rounds of one repair: `prune` begins the next one, `train` ends it.

    steps: optimizer steps of every round.
    """

    def __init__(
        self, method: LosaSettings, work: Work, progress: Progress, steps: Sequence[int]
    ) -> None:
        self.method, self.work, self.progress, self.steps = method, work, progress, steps

    def prune(self) -> None:
        """Run the next round up to its training: set rates, supports and ranks."""
        method, work, progress = self.method, self.work, self.progress
        progress.round, progress.trained = progress.round + 1, False
        started = perf_counter()
        with merged_by_block(work.model):
            rates = self.set_rates()
        allocated = perf_counter()
        before = {name: m.packed_keep.clone() for name, m in losa_linears(work.model).items()}
        pruner, allocation = work.pruner_and_rates(rates)
        with merged_by_block(work.model):
            errors = prune_and_compare(
                work.pair,
                pruner,
                allocation,
                work.bench.pattern,
                true_sequential=work.bench.true_sequential,
            )
        mean = method.ranks.means(method.rounds)[progress.round - 1]
        ranks = self.ranks_of(errors, mean)
        self.set_ranks(ranks)
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
        report_pruned(record, method.rounds)

    def set_rates(self) -> list[float]:
        """The blocks' sparsities in this round, around its target, which `progress` gets too."""
        method, work, progress = self.method, self.work, self.progress
        bench, weights = work.bench, block_weights(work.model)
        if method.fixed_pattern:
            progress.rates = [bench.pattern.sparsity] * len(weights)
            return progress.rates
        target = round_targets(method.targets, bench.sparsity, method.rounds)[progress.round - 1]
        similarity = block_similarity(work.model, bench.calibration, method.similarity_samples)
        delta = method.delta
        progress.delta = delta_of(target, progress.delta) if delta is None else delta
        reached = progress.rates or block_zeros(work.model)
        floors = reached if method.oversparsity == "bound" else None
        band = Band(target, progress.delta, weights, floors)
        progress.rates = solve(band, importance(similarity.tolist(), method.beta), method.solver)
        return progress.rates

    def ranks_of(self, errors: Sequence[float], mean: float) -> list[int]:
        """The rank of every block, 0 of one in which no linear is pruned, which takes no share."""
        pruned = [bool(linears) for linears in by_block(self.work.model)]
        of_pruned = [error for error, some in zip(errors, pruned, strict=True) if some]
        ranks = iter(allocate_ranks(of_pruned, mean, self.method.ranks))
        return [next(ranks) if some else 0 for some in pruned]

    def set_ranks(self, ranks: Sequence[int]) -> None:
        """Give the linears of every block its rank, and carried moments its shape."""
        work, progress = self.work, self.progress
        # a function of seed and round, so that a continued run draws what an undisturbed one does
        seed = mix_seed(work.bench.seed, progress.round) * 101 + 1
        generator = torch.Generator().manual_seed(seed)
        capped = self.method.rank_cap is not None
        used = {name: linear.rank for name, linear in losa_linears(work.model).items()}
        for rank, linears in zip(ranks, by_block(work.model), strict=True):
            for linear in linears.values():
                start = None if capped else kaiming_start(rank, linear.in_features, generator)
                linear.set_rank_(rank, start)
        progress.moments = resize_moments(progress.moments, work.model, used)

    def train(self) -> None:
        """Run one fit on the round's share of the data, resumed from where it was killed, if so."""
        method, work, progress = self.method, self.work, self.progress
        model, bench, number = work.model, work.bench, progress.round
        home = next(model.parameters()).device
        parameters = method.free_trainable(model)
        carried = CarriedMoments(progress.moments)
        mark = RoundMark(number, sum(self.steps[: number - 1]), mask_update(progress.records[-1]))
        callbacks: list[Callback] = [*method.callbacks(), mark]
        if method.optimizer_state == "carried":
            callbacks.append(carried)
        module = self.module(callbacks)
        checkpoint = bench.resume_from if RoundMark.of(bench.resume_from) == number else None
        started = perf_counter()
        fitted = module.fit(bench.make_trainer, out=bench.out, resume_from=checkpoint)
        trained = perf_counter()
        nn.Module.to(model, home)  # Lightning leaves it on the host
        model.requires_grad_(False).eval().zero_grad(set_to_none=True)
        progress.trained, progress.moments = True, carried.moments
        record = progress.records[-1]
        if method.measure_trained:
            with merged_by_block(model):
                errors = output_errors(work.pair)
            for block, error in zip(record["blocks"], errors, strict=True):
                block["error_trained"] = error
        record |= {**fitted, **module.objective.report(), "trained_parameters": parameters}
        record["seconds"] |= {
            "train": trained - started,
            "measure": perf_counter() - trained,
            "step": record.pop("step_seconds"),
        }
        report_trained(record, method.rounds)

    def module(self, callbacks: list[Callback]) -> RepairModule:
        """The module of this round's fit, on its share of the data."""
        method, bench, number = self.method, self.work.bench, self.progress.round
        train, seed = bench.train, bench.seed
        # all rounds together read what one long fit would
        first_step = sum(self.steps[: number - 1])
        if method.data_slices is not None:
            part = slice(*method.data_slices[number - 1])
            train, seed = Examples(train.tokens[part], train.labels[part]), seed + number
            first_step = 0
        return RepairModule(
            self.work.model,
            replace(method.plan, max_steps=self.steps[number - 1]),
            callbacks,
            method.make_optimizer,
            train,
            bench.validation,
            seed=seed,
            micro_batch=bench.micro_batch,
            activation_checkpointing=bench.activation_checkpointing,
            first_step=first_step,
            objective=self.work.objective,
        )

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from sparsemend.data.base import Examples
from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.adapter.low_rank import attach_started, check_ranks, factors
from sparsemend.method.base import Workbench
from sparsemend.method.losa.component_adamw import ComponentAdamW
from sparsemend.method.losa.linear import LosaLinear
from sparsemend.method.losa.plan import check_fixed_pattern, check_slices, round_steps
from sparsemend.method.losa.progress import Progress, losa_linears, restore_dense_
from sparsemend.method.losa.report import totals
from sparsemend.method.losa.rounds import Rounds, Work
from sparsemend.method.losa.settings import LosaSettings
from sparsemend.sparse.linear import SparseLinear
from sparsemend.training.callbacks import VALIDATION_LOSS

FILE = "rounds.pt"


@dataclass(kw_only=True)
class Losa(LosaSettings):
    """T rounds of allocate, prune, re-rank, train; then the factors are folded in."""

    needs_calibration: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = True
    reallocates: ClassVar[bool] = True

    @property
    def reads_pruned(self) -> bool:
        return self.prior_prune

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        check_ranks(model, self.max_rank, "max_rank")

    def check_train(self, train: Examples) -> None:
        super().check_train(train)
        check_slices(self.data_slices, self.rounds, len(train))

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        rank = self.rank_cap or round(self.mean_rank)

        def make(linear: SparseLinear, start: Tensor) -> LosaLinear:
            settings = LorsSettings(
                self.scale, "exact_tiled", self.tile_rows, "float32", linear.weight.dtype
            )
            return LosaLinear(
                linear,
                start,
                settings,
                rank=rank,
                dropout=self.dropout,
                exact_base=self.exact_base,
                # as released, which is how a block can end above the rate it is asked for
                nested=self.oversparsity == "ignore",
            )

        attach_started(model, make, rank=rank, seed=bench.seed)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        return factors(model)

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """AdamW whose moments can be carried between rounds, or (fresh) the plan's optimizer."""
        if self.optimizer_state == "fresh":
            return super().make_optimizer(model)
        linears = losa_linears(model).values()
        return ComponentAdamW(
            [linear.lora_a for linear in linears],
            [linear.lora_b for linear in linears],
            lr=self.learning_rate,
            betas=self.plan.both_betas,
            weight_decay=self.weight_decay,
        )

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        """Return the diagnostics; `rounds` has what each asked, reached and cost, by block."""
        check_fixed_pattern(bench.pattern, fixed=self.fixed_pattern)
        self.check_train(bench.train)
        self.check_validation(bench.validation)
        steps = round_steps(self.round_steps, self.max_steps, self.rounds)
        torch.manual_seed(bench.seed)
        work = Work(model, bench.load_dense().eval(), bench, self.objective(bench))
        restore_dense_(model, work.dense)
        self.attach(model, bench)
        path = bench.parts / FILE
        progress = Progress.load(path, model, work.dense)
        rounds = Rounds(self, work, progress, steps)
        while progress.round < self.rounds or not progress.trained:
            if progress.trained:
                rounds.prune()
            else:
                rounds.train()
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

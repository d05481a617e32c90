"""SpIEL on a sparse model, pruned back afterwards: sparse deltas that ignore the support.

    train: W + d, d anywhere        end: the run's zeros again, by magnitude, support or the pruner

Deltas drop by |d| and grow by accumulated gradient over a window (selection=gradient, SpIEL-AG) or
by the product of SM3's row and column accumulators (selection=moments, SpIEL-MA).  At most k zeros
per linear fill in, and pruning back loses as many weights again; SEFT avoids this cost.  keep_best
and patience follow the loss before that (validation/loss; validation/loss/folded is after it).

Ansell et al. 2024, arXiv 2401.16405, and its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from sparsemend.method.adapter.delta.linear import DeltaLinear, delta_linears
from sparsemend.method.adapter.delta.rounds import DeltaRounds
from sparsemend.method.adapter.delta.start import all_places, random_positions
from sparsemend.method.adapter.delta.window import Window
from sparsemend.method.base import Workbench
from sparsemend.method.delta_repair import DeltaRepair
from sparsemend.method.spiel.sm3 import Sm3, best_products
from sparsemend.prune import prune
from sparsemend.rounding import apply_rounding
from sparsemend.sparse.drop_and_grow import Move, exchange
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_group, lowest_per_row
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.training.batches import mean_loss
from sparsemend.training.callbacks import VALIDATION_LOSS
from sparsemend.training.plan import check_choice

SELECTIONS = ("gradient", "moments")
PRUNE_BACK = ("magnitude", "support", "pruner")


class ProductRounds(DeltaRounds):
    """Grows where the accumulators' product is largest; a position just left cannot come back."""

    def choose(self, layer: DeltaLinear, optimizer: Optimizer, count: int) -> Move:
        assert isinstance(optimizer, Sm3)
        rows, columns = optimizer.accumulators(layer)
        candidates, score = best_products(rows, columns, layer.indices, count)
        return exchange(
            layer.indices,
            layer.values.detach().abs(),
            candidates,
            score,
            count=count,
            size=layer.size,
        )


@dataclass(kw_only=True)
class Spiel(DeltaRepair):
    """Trains deltas anywhere, merges them and prunes back to the run's sparsity."""

    holds_support: ClassVar[bool] = False

    selection: str
    momentum: float
    prune_back: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pattern = Pattern.parse("unstructured")  # the run's, from attach on
        check_choice("selection", self.selection, SELECTIONS)
        check_choice("prune_back", self.prune_back, PRUNE_BACK)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"method.momentum={self.momentum} is not in [0, 1)")

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        # a model that came pruned has the rates that were counted, no allocation of a pruner
        nothing = bench.pruner.reads_support or not isinstance(bench.allocation, Allocation)
        if self.prune_back == "pruner" and nothing:
            raise ValueError(
                "method.prune_back=pruner prunes as the run did, but nothing was pruned here "
                "(pruner=existing, or a call of repair without pruned); set "
                "method.prune_back=magnitude"
            )
        self.pattern = bench.pattern
        counts = self.counts(model)
        self.attach_at(model, random_positions(model, all_places, counts, bench.seed))

    def make_layer(self, linear: SparseLinear, positions: Tensor) -> DeltaLinear:
        return DeltaLinear(linear, positions, self.kernel)

    def make_window(self, layer: DeltaLinear) -> Window:
        return Window(layer.indices.numel(), None, watched=0)

    def make_rounds(self) -> DeltaRounds:
        if self.selection == "moments":
            return ProductRounds(self.rounds, None, seed_age_offset=self.seed_age_offset)
        return DeltaRounds(self.rounds, self.make_window, seed_age_offset=self.seed_age_offset)

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        if self.selection != "moments":
            return super().make_optimizer(model)
        return Sm3(
            [layer for _, layer in delta_linears(model)],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        report = super().repair(model, bench)
        if self.prune_back == "pruner":
            assert isinstance(bench.allocation, Allocation)  # `attach` has seen to it
            pruner, allocation = apply_rounding(bench.rounding, bench.pruner, bench.allocation)
            if not bench.calibration.offload:
                nn.Module.to(model, bench.device)  # a fit leaves it on the host
            prune(
                model,
                bench.calibration,
                pruner,
                allocation,
                bench.pattern,
                true_sequential=bench.true_sequential,
            )
            examples = bench.validation.first(self.validation_windows)
            loss = mean_loss(model, examples, bench.device, self.at_once(bench))
            report[f"{VALIDATION_LOSS}/folded"] = loss
        return report

    @torch.no_grad()
    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        """Merge; prune back unless the run's pruner will do that (prune_back=pruner)."""
        evolved, filled = self.evolution_record(model), 0
        for name in [name for name, _ in delta_linears(model)]:
            layer = model.get_submodule(name)
            assert isinstance(layer, DeltaLinear)
            weight = layer.effective_weight().detach()
            filled += int(weight.masked_fill(layer.keep, 0).count_nonzero())
            merged = nn.Parameter(weight, requires_grad=False)
            # SparseLinear zeroes what lies off the support
            model.set_submodule(
                name, SparseLinear(merged, layer.bias, self._support_of(layer, weight))
            )
        return {"filled_zeros": filled, **evolved}

    def _support_of(self, layer: DeltaLinear, weight: Tensor) -> Tensor:
        """The support of a merged weight, bool (O, I)."""
        if self.prune_back == "support":
            return layer.keep
        if self.prune_back == "pruner":
            return torch.ones_like(layer.keep)
        score, zeros = weight.abs(), int((~layer.keep).count_nonzero())
        if self.pattern.unstructured:
            return ~lowest_per_row(score.view(1, -1), zeros).view(weight.shape)
        return ~lowest_per_group(score, self.pattern.at(zeros / weight.numel()))

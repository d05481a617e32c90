"""SEFT: sparse fine-tuning of a sparse model whose support evolves within its budget.

    W' = W + d,   d sparse,   nnz(W') <= nnz(W) at the start, per linear

Deltas train by AdamW, each with an age.  Every `update_interval` steps the smallest leave, new ones
grow where the window's gradient is largest, on pruned positions too, and as many of the least
sensitive weights |w g| are pruned (see rounds): the zeros move to where the task wants them.
`adapt=false` prunes nothing: on a fixed mask, or with growth anywhere beyond the budget, the two
controls between which SEFT lies.

Xiao et al. 2025, arXiv 2505.24037; drop, growth, schedule and optimizer as in the code of SpIEL
(Ansell et al. 2024, arXiv 2401.16405).  Where descriptions of the method are silent,
conf/method/seft.yaml has a key and says that its value is ours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.method.adapter.delta.linear import DeltaLinear, delta_linears
from sparsemend.method.adapter.delta.probe import LossProbe
from sparsemend.method.adapter.delta.rounds import Moved
from sparsemend.method.adapter.delta.start import (
    all_places,
    gradient_positions,
    kept_places,
    random_positions,
)
from sparsemend.method.adapter.delta.window import EVERYWHERE, SENSITIVITY_GRADIENTS, Window
from sparsemend.method.base import Workbench
from sparsemend.method.delta_repair import DeltaRepair
from sparsemend.method.seft.linear import SeftLinear
from sparsemend.method.seft.pattern import check_within_group
from sparsemend.method.seft.rounds import (
    ADAPT_CANDIDATES,
    ADAPT_SCOPES,
    ADAPT_SCORES,
    Adaptation,
    SeftRounds,
    adapt,
)
from sparsemend.prune import check_widths
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.pattern import Pattern
from sparsemend.training.plan import check_choice

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Seft(DeltaRepair):
    """Trains deltas on the support, moves them with it, folds them in."""

    init_scope: str
    grow_scope: str
    pattern_growth: str
    exclude_active_candidates: bool
    adapt: bool
    adapt_scope: str
    adapt_candidates: str
    adapt_score: str
    sensitivity_gradient: str
    sensitivity_candidates: float
    refill: bool
    fold_at_rounds: bool
    round_loss_windows: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pattern = Pattern.parse("unstructured")  # the run's, from attach on
        self.probe: LossProbe | None = None  # of the run's windows, from attach on
        check_choice("init_scope", self.init_scope, ("active", "all", "gradient"))
        check_choice("grow_scope", self.grow_scope, ("active", "all"))
        check_choice("pattern_growth", self.pattern_growth, ("active", "within_group"))
        check_choice("adapt_scope", self.adapt_scope, ADAPT_SCOPES)
        check_choice("adapt_candidates", self.adapt_candidates, ADAPT_CANDIDATES)
        check_choice("adapt_score", self.adapt_score, ADAPT_SCORES)
        check_choice("sensitivity_gradient", self.sensitivity_gradient, SENSITIVITY_GRADIENTS)
        if self.sensitivity_candidates < 2:
            raise ValueError(
                f"method.sensitivity_candidates={self.sensitivity_candidates} is below 2: as many "
                "as there are deltas may carry one after a round, and as many may have to go"
            )
        if self.refill and self.sensitivity_gradient not in EVERYWHERE:
            raise ValueError(
                "method.refill=true needs the gradient where weights were pruned; set "
                "method.sensitivity_gradient=rms"
            )

    @property
    def growth(self) -> str:
        """Where deltas may be in this run; with a pattern `active`, unless within_group is set."""
        if self.pattern.unstructured or self.pattern_growth == "within_group":
            return self.grow_scope
        return "active"

    @property
    def within(self) -> Pattern | None:
        """The pattern that growth beyond the support must keep."""
        return None if self.pattern.unstructured or self.growth == "active" else self.pattern

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        self.pattern = bench.pattern
        check_within_group(vars(self), self.pattern)
        if self.round_loss_windows:
            examples = bench.validation.first(self.round_loss_windows)
            self.probe = LossProbe(examples=examples, at_once=self.at_once(bench))
        if self.within is not None:
            check_widths(model, self.within, tail="error")
        counts, everywhere = self.counts(model), self.init_scope == "all"
        everywhere |= self.init_scope == "gradient" and self.growth == "all"
        everywhere &= self.growth == "all" and self.within is None
        places = all_places if everywhere else kept_places
        # a resumed fit takes its positions from the checkpoint
        if self.init_scope == "gradient" and bench.resume_from is None:
            windows = self.windows_per_step
            positions = gradient_positions(model, bench, places, counts, windows=windows)
        else:
            positions = random_positions(model, places, counts, bench.seed)
        self.attach_at(model, positions)

    def make_layer(self, linear: SparseLinear, positions: Tensor) -> DeltaLinear:
        return SeftLinear(
            linear,
            positions,
            self.kernel,
            growth=self.growth,
            untouched_candidates=self.exclude_active_candidates,
            refill=self.refill,
            # within a pattern what a slot leaves behind stays in the base
            rewrites_base=self.fold_at_rounds or self.within is not None,
        )

    def make_window(self, layer: DeltaLinear) -> Window:
        count = layer.indices.numel()
        sensitive = self.adapt and self.growth == "all" and self.adapt_score == "sensitivity"
        return Window(
            count,
            self.sensitivity_gradient if sensitive else None,
            watched=int(self.sensitivity_candidates * count),
        )

    def make_rounds(self) -> SeftRounds:
        adaptation = Adaptation(
            adapt=self.adapt,
            scope=self.adapt_scope,
            candidates=self.adapt_candidates,
            score=self.adapt_score,
            refill=self.refill,
            fold=self.fold_at_rounds,
            within=self.within,
        )
        rounds = SeftRounds(
            adaptation, self.rounds, self.make_window, seed_age_offset=self.seed_age_offset
        )
        rounds.probe = self.probe
        return rounds

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        """Fold the deltas in; the report counts those alive, and the weights beyond the budget."""
        evolved = self.evolution_record(model)
        trimmed = trim_(model, self.make_rounds().adaptation) if self.adapt else 0
        alive, beyond = slots_and_excess(model)
        if beyond:
            log.warning(
                "%d weights more than the sparsity allows: method.adapt=false prunes nothing for "
                "what grew, a control to compare with",
                beyond,
            )
        counts = {"trained_parameters": alive, "trimmed": trimmed, "beyond_budget": beyond}
        return {**counts, **super().fold(model), **evolved}


def slots_and_excess(model: PreTrainedModel) -> tuple[int, int]:
    """(slots that hold a delta, weights that all supports together have beyond their budgets)."""
    alive = excess = 0
    for _, layer in delta_linears(model):
        assert isinstance(layer, SeftLinear)
        alive += int(layer.alive.count_nonzero())
        excess += int(layer.keep.count_nonzero()) - layer.budget
    return alive, max(0, excess)


def trim_(model: PreTrainedModel, rule: Adaptation) -> int:
    """Prune the smallest weights beyond the budget; return how many.

    There are some only if the kept checkpoint is from before the first round, which makes room for
    deltas that started on pruned positions.
    """
    rule = replace(rule, score="magnitude", candidates="all", refill=False)
    none = torch.empty(0, dtype=torch.int64)
    layers = [Moved(layer, None, none) for _, layer in delta_linears(model)]
    groups = [[layer] for layer in layers] if rule.scope == "layer" else [layers]
    return sum(sum(adapt(group, rule, {})[0]) for group in groups)

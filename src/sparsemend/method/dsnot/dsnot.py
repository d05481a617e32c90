"""DSnoT: repair a pruned model by moving its zeros, without training.

Block by block, every row revives pruned weights and prunes kept ones so that its expected output
error, the sum over pruned weights of W * mean(x), goes towards zero; revived weights return with
their dense value (Zhang, Zhao, Lin et al. 2024, arXiv 2310.08915).  The swaps themselves are in
`swaps`.  Deviations, each an option: all linears are refined, as in the paper, where the
released code skips the MLP (`refine`); stopped rows are frozen (`mode`); and a SparseGPT start
works, where the released code never accumulates its Hessian.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks, linears_of
from sparsemend.blocks.residency import residency_of
from sparsemend.blocks.statistics import InputNorm, Moments, Statistic
from sparsemend.blocks.walk import Visit
from sparsemend.method.base import RepairMethod, Workbench
from sparsemend.method.dsnot.restored import PrunedState, restore_dense_, take_back_
from sparsemend.method.dsnot.swaps import (
    InputMoments,
    Refined,
    SwapRule,
    initial_keep,
    refine,
    refine_groups,
)
from sparsemend.method.dsnot.tally import Tallies, Tally
from sparsemend.pruner.base import Pruner
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.packing import unpack
from sparsemend.sparse.pattern import Pattern
from sparsemend.terminal import with_lines

log = logging.getLogger(__name__)
T = TypeVar("T")

CHOICES = {
    "threshold_units": ("token_sum", "token_mean"),
    "variance": ("within", "pooled"),
    "refine": ("all", "attention", "none"),
    "mode": ("clean", "faithful"),
    "start": ("pruner", "given"),
    "sparsegpt_weights": ("mask_only", "obs"),
}


class ObservedInputs(Statistic):
    """Moments of a linear's inputs, and the statistic that the pruner needs of them."""

    def __init__(self, moments: Moments, of_pruner: Statistic | None) -> None:
        self.moments = moments
        shared = type(of_pruner) is InputNorm  # Wanda's norm is one of the moments
        self.of_pruner = moments.norm if shared else of_pruner
        self._apart = None if shared else of_pruner

    def update(self, inputs: Tensor) -> None:
        self.moments.update(inputs)
        if self._apart is not None:
            self._apart.update(inputs)


def observer(
    pruner: Pruner, in_features: int, device: torch.device, *, pooled: bool
) -> ObservedInputs:
    """A fresh accumulator for one linear."""
    moments = Moments(in_features, device, pooled=pooled)
    return ObservedInputs(moments, pruner.statistic(in_features, device))


def _as(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"DSnoT needs a {kind.__name__} here, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class Start:
    """The start of one linear's swaps: values of kept and revived weights, support, score.

    weight: the dense one itself where no kept weight was updated.
    """

    weight: Tensor
    keep: Tensor
    score: Tensor


@dataclass(kw_only=True)
class DSnoT(RepairMethod):
    """Restarts from the dense weights and refines the support of every block's linears; one that no
    token reaches keeps the support and the weights that it had.

    refine=attention means linears whose name within the block starts with a component holding
    `attn` or `attention` (self_attn, attention, ...); the others get the initial mask alone.
    start=given ranks N:M groups by Wanda's score, for the score behind given masks is unknown.
    sparsegpt_weights=obs starts from the pruner's own mask and updated weights (with start=given:
    the model's), and from the error that these leave; revived weights take their dense value.
    max_cycles below 1 is a share of a row's inputs: the paper's 50 move at most 2.4 % of a row of
    4096, and 17 % of one of 576.
    """

    needs_calibration: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = True
    calibration_passes: ClassVar[int] = 2
    streams: ClassVar[bool] = True

    max_cycles: float
    threshold: float
    threshold_units: str
    variance_power: float
    variance: str
    same_sign: bool
    refine: str
    mode: str
    start: str
    sparsegpt_weights: str

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"method.{name} {value!r} is not one of: {', '.join(choices)}")
        for name in ("max_cycles", "threshold", "variance_power"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"method.{name} {getattr(self, name)} is negative; use 0 or more")
        if self.max_cycles >= 1 and self.max_cycles % 1:
            raise ValueError(
                f"method.max_cycles {self.max_cycles} is neither a whole number of cycles nor, "
                "below 1, a share of a row's inputs"
            )

    def cycles_of(self, inputs: int) -> int:
        """The cycles of a row of so many inputs: `max_cycles`, or that share, at least one."""
        if 0 < self.max_cycles < 1:
            return max(1, round(self.max_cycles * inputs))
        return int(self.max_cycles)

    @torch.no_grad()
    def repair(self, model: PreTrainedModel, bench: Workbench) -> dict[str, Any]:
        """Return swaps per block, the share of the mask that moved and mean |E| in token sums."""
        self._check_targets(model)
        updated = self.start == "given" and self.sparsegpt_weights == "obs"
        dense = bench.load_dense()
        originals, tallies = residency_of(dense), Tallies()
        for visit in bench.calibration.walk(model, changes=True, carried=tallies):
            place = next(visit.block.parameters()).device
            with originals.resident(visit.index, place) as block:
                states = restore_dense_(visit.block, block, weights=updated)
            tally = self._repair_block(visit, bench, states)
            log.info(
                "block %d/%d  swapped %.2f %%  |E| %.3g -> %.3g",
                visit.index + 1,
                visit.count,
                100 * tally.fraction_moved,
                tally.mean_before,
                tally.mean_after,
            )
            tallies.blocks.append(tally)
        total = tallies.total
        return {
            "swaps_per_block": [tally.revived for tally in tallies.blocks],
            "mask_moved": total.fraction_moved,
            "dropped": total.moved // 2,
            "grown": total.moved // 2,
            "mean_error_before": total.mean_before,
            "mean_error_after": total.mean_after,
        }

    def _check_targets(self, model: nn.Module) -> None:
        names = [name for block in find_blocks(model)[1] for name in linears_of(block)]
        if self.refine == "attention" and not any(map(in_attention, names)):
            raise ValueError(
                "method.refine=attention matches no linear of this model: none of "
                f"{', '.join(sorted(set(names)))} starts with an attention module"
            )

    def _repair_block(
        self, visit: Visit, bench: Workbench, states: Mapping[str, PrunedState]
    ) -> Tally:
        statistics = visit.observe(
            lambda width, device: observer(
                bench.pruner, width, device, pooled=self.variance == "pooled"
            )
        )
        tally, where = Tally(), f"block {visit.index + 1}/{visit.count}, linear"
        for name, linear in with_lines(list(sparse_linears(visit.block)), where):
            full_name = visit.full_name(name)
            if name not in statistics:
                take_back_(linear, states[name])
                continue
            sparsity = bench.allocation[full_name]
            pattern = bench.pattern.at(sparsity)
            observed = _as(ObservedInputs, statistics.pop(name))
            start = self._start(
                linear.weight, states[name], observed, bench.pruner, sparsity, pattern
            )
            keep = start.keep
            if self.refine == "all" or (self.refine == "attention" and in_attention(name)):
                refined = self._refine(linear.weight, start, observed.moments, pattern)
                tally, keep = tally + Tally.of(start.keep, refined), refined.keep
            else:
                tally += Tally(weights=keep.numel())
            linear.set_effective_(start.weight, keep)
        return tally

    def _start(
        self,
        dense: Tensor,
        state: PrunedState,
        observed: ObservedInputs,
        pruner: Pruner,
        sparsity: float,
        pattern: Pattern,
    ) -> Start:
        updated = self.sparsegpt_weights == "obs"
        if self.start == "given":
            score = dense.float().abs() * observed.moments.squared.sqrt()
            weight = None if state.weight is None else state.weight.to(dense.device)
            keep = unpack(state.packed_keep.to(dense.device), dense.shape[1])
        else:
            score = pruner.score(dense, observed.of_pruner)
            if not updated:
                return Start(dense, initial_keep(score, sparsity, pattern), score)
            pruned = pruner(dense, observed.of_pruner, sparsity, pattern)
            weight, keep = pruned.weight, pruned.keep
        return Start(dense if weight is None else torch.where(keep, weight, dense), keep, score)

    def _refine(self, dense: Tensor, start: Start, moments: Moments, pattern: Pattern) -> Refined:
        if start.keep.all():  # nothing to revive; the authors' code would not come here
            nothing = start.weight.new_zeros(len(start.keep), dtype=torch.float32)
            return Refined(start.keep, nothing, nothing)
        tokens = moments.tokens / moments.norm.sequences
        rule = SwapRule(
            max_cycles=self.cycles_of(dense.shape[1]),
            threshold=self.threshold * (tokens if self.threshold_units == "token_mean" else 1),
            variance_power=self.variance_power,
            same_sign=self.same_sign,
            faithful=self.mode == "faithful",
        )
        # Pooled variances are differences; rounding can push a constant input's below zero.
        inputs = InputMoments(moments.total, moments.squared, moments.variance.clamp(min=0))
        left = None
        if start.weight is not dense:
            left = ((dense.float() - start.weight.float()) * moments.total).sum(dim=1)
        if pattern.unstructured:
            return refine(start.weight, inputs, start.keep, rule, left)
        size = pattern.group_size
        return refine_groups(start.weight, inputs, start.keep, start.score, size, rule, left)


def in_attention(name: str) -> bool:
    """Whether a linear's name within its block starts with an attention module's."""
    first = name.split(".")[0].lower()
    return "." in name and ("attn" in first or "attention" in first)

"""SEFT's part of a round: after deltas have moved, prune the least sensitive weights.

    s_i = |(W_i + d_i) g_i|,   g the root mean square of the window's gradients

Growth on pruned positions has enlarged the support; the lowest s leave it until it is within its
budget again.  What grew in this round is protected: it is still 0, its s is 0, and it would leave
before it trained once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsemend.method.adapter.delta.linear import DeltaLinear
from sparsemend.method.adapter.delta.rounds import DeltaRounds, Moved
from sparsemend.method.adapter.low_rank import wider
from sparsemend.method.seft.linear import DEAD, GROWN, SeftLinear
from sparsemend.sparse.drop_and_grow import (
    Move,
    at_most_per_group,
    exchange,
    forget_,
    highest,
    lowest,
)
from sparsemend.sparse.packing import unpack
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_group
from sparsemend.sparsity_schedule.rates.pooled import lowest_counts

ADAPT_SCOPES = ("layer", "global")
ADAPT_CANDIDATES = ("all", "base_only")
ADAPT_SCORES = ("sensitivity", "magnitude")


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How a round returns to the budget; within: the N:M pattern that growth must keep."""

    adapt: bool
    scope: str
    candidates: str
    score: str
    refill: bool
    fold: bool
    within: Pattern | None


class SeftRounds(DeltaRounds):
    """Moves deltas, then adapts supports."""

    def __init__(self, adaptation: Adaptation, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.adaptation = adaptation

    def choose(self, layer: DeltaLinear, optimizer: Optimizer, count: int) -> Move:
        pattern, window = self.adaptation.within, layer.window
        if pattern is None:
            return super().choose(layer, optimizer, count)
        # more new growth than a group keeps could not all be protected in it
        assert window is not None
        assert window.candidates is not None
        assert window.sums is not None
        score = window.sums.abs()
        best = highest(score, score.numel())
        best = best[at_most_per_group(window.candidates[best], pattern.group_size, pattern.kept)]
        return exchange(
            layer.indices,
            layer.values.detach().abs(),
            window.candidates[best],
            score[best],
            count=count,
            size=layer.size,
        )

    def replace_(self, layer: DeltaLinear, move: Move) -> Tensor:
        assert isinstance(layer, SeftLinear)
        if self.adaptation.fold:
            layer.fold_in_()
        # in a pattern a position stays in its group's support until another takes its place
        return layer.replace_(move, release=self.adaptation.within is None)

    def settle(self, moved: list[Moved], optimizer: Optimizer) -> Mapping[str, list[int]]:
        rule, layers = self.adaptation, [_seft(each) for each in moved]
        pruned = refilled = [0] * len(moved)
        reactivated = [
            int((layer.states[each.grown] == GROWN).count_nonzero())
            for layer, each in zip(layers, moved, strict=True)
        ]
        if rule.within is not None:
            pruned = [keep_pattern(each, rule, optimizer.state) for each in moved]
        elif rule.adapt:
            groups = [[each] for each in moved] if rule.scope == "layer" else [moved]
            both = [adapt(group, rule, optimizer.state) for group in groups]
            pruned = [count for counts, _ in both for count in counts]
            refilled = [count for _, counts in both for count in counts]
        return {
            "reactivated": reactivated,
            "pruned": pruned,
            "refilled": refilled,
            "dead": [int((layer.states == DEAD).count_nonzero()) for layer in layers],
            "allocated": [int(layer.keep.count_nonzero()) for layer in layers],
            "overlap": [int((layer.keep & starting(layer)).count_nonzero()) for layer in layers],
        }


States = Mapping[Tensor, Mapping[str, object]]  # an optimizer's, by parameter


def adapt(group: list[Moved], rule: Adaptation, states: States) -> tuple[list[int], list[int]]:
    """Bring the supports of a group of layers to the sum of their budgets.

    Returns (pruned, refilled), numbers of weights per layer.  A group under its budget stays so,
    unless weights that were pruned may come back.
    """
    layers = [_seft(each) for each in group]
    excess = sum(int(layer.keep.count_nonzero()) - layer.budget for layer in layers)
    none = [0] * len(group)
    if excess > 0:
        chosen = lowest_of_group(group, rule, excess)
        for layer, positions in zip(layers, chosen, strict=True):
            prune_(layer, positions, states)
        return [positions.numel() for positions in chosen], none
    if excess < 0 and rule.refill:
        scored = [refill_scores(each, rule) for each in group]
        flat = torch.cat([s for _, s in scored])
        chosen = split(highest(flat, min(-excess, flat.numel())), scored)
        for layer, positions in zip(layers, chosen, strict=True):
            revived = layer.refill_(positions)  # with the age that they counted while dead
            forget_(states.get(layer.values, {}), layer.values.shape, revived)
        return none, [positions.numel() for positions in chosen]
    return none, none


def lowest_of_group(group: list[Moved], rule: Adaptation, count: int) -> list[Tensor]:
    """Flat positions per layer of the `count` lowest scores of all; ties to the earlier layer.

    Of several layers, whose scores rank in fp32, two at most have their scores in memory: all
    would take 12 bytes per kept weight of the model.
    """

    def of_each() -> Iterator[Tensor]:
        return (scores(each, rule)[1] for each in group)

    shares = [count] if len(group) == 1 else lowest_counts(of_each, count)
    chosen = []
    for each, share in zip(group, shares, strict=True):
        positions, score = scores(each, rule)
        chosen.append(positions[lowest(score, share)])
    return chosen


def split(chosen: Tensor, scored: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Flat positions per layer of `chosen`, indices into the concatenated scores of all layers."""
    parts, start = [], 0
    for positions, _ in scored:
        end = start + positions.numel()
        parts.append(positions[chosen[(chosen >= start) & (chosen < end)] - start])
        start = end
    return parts


def scores(each: Moved, rule: Adaptation) -> tuple[Tensor, Tensor]:
    """(flat positions, score) of the weights that may be pruned in a layer whose deltas moved."""
    layer = _seft(each)
    positions, gradient = _multipliers(each, rule, layer.prunable())
    eligible = layer.keep.reshape(-1)
    eligible[layer.indices[each.grown].long()] = False
    if rule.candidates == "base_only":
        eligible[layer.indices[layer.alive].long()] = False
    chosen = eligible[positions]
    weight = layer.effective_weight().detach().reshape(-1)[positions[chosen]]
    return positions[chosen], (weight.to(wider(weight.dtype)) * gradient[chosen]).abs()


def refill_scores(each: Moved, rule: Adaptation) -> tuple[Tensor, Tensor]:
    """(flat positions, score) of the pruned base weights that may come back, by their old value."""
    layer = _seft(each)
    assert layer.spare is not None
    positions, gradient = _multipliers(each, rule, layer.refillable())
    chosen = layer.refillable().reshape(-1)[positions]
    weight = layer.spare.reshape(-1)[positions[chosen]]
    return positions[chosen], (weight.to(wider(weight.dtype)) * gradient[chosen]).abs()


def _multipliers(each: Moved, rule: Adaptation, places: Tensor) -> tuple[Tensor, Tensor]:
    """(positions, factors of their weights): the factor is the window's gradient, or 1."""
    if rule.score == "magnitude":
        positions = places.reshape(-1).nonzero().view(-1)
        wide = wider(each.layer.weight.dtype)
        return positions, torch.ones(positions.shape, dtype=wide, device=positions.device)
    assert each.window is not None
    return each.window.sensitivity_gradient(each.layer)


def keep_pattern(each: Moved, rule: Adaptation, states: States) -> int:
    """Prune the lowest scores of every group of M with more than N allocated; return how many."""
    assert rule.within is not None
    layer = _seft(each)
    positions, score = scores(each, rule)
    # not allocated below everything, protected above everything
    ranked = torch.full((layer.size,), -1.0, dtype=score.dtype, device=score.device)
    ranked[layer.keep.reshape(-1)] = torch.inf
    ranked[positions] = score
    leaves = lowest_per_group(ranked.view(layer.weight.shape), rule.within) & layer.keep
    pruned = leaves.reshape(-1).nonzero().view(-1)
    prune_(layer, pruned, states)
    return pruned.numel()


def prune_(layer: SeftLinear, positions: Tensor, states: States) -> None:
    """Prune flat `positions`; the optimizer forgets the slots that die."""
    died = layer.prune_(positions)
    forget_(states.get(layer.values, {}), layer.values.shape, died)


def starting(layer: SeftLinear) -> Tensor:
    """The support before training, bool (O, I)."""
    return unpack(layer.starting_keep, layer.in_features)


def _seft(each: Moved) -> SeftLinear:
    assert isinstance(each.layer, SeftLinear)
    return each.layer

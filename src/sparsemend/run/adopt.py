"""The support that an already pruned checkpoint brings: read, checked, given to its linears."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsemend.blocks.find import is_never_called, prunable_linears
from sparsemend.blocks.names import saved_name
from sparsemend.blocks.residency import visit_linears
from sparsemend.checkpoint.bits import SIZES, Support, most_in_group, pattern_of
from sparsemend.sparse.count import LinearCount, count_zeros
from sparsemend.sparse.linear import SparseLinear
from sparsemend.sparse.packing import pack
from sparsemend.sparse.pattern import Pattern

log = logging.getLogger(__name__)

NO_ZERO = "pruner=existing found no zero in this model; choose a pruner to prune it"
DENSE = 0.99  # share of weights that are not zero in a linear that nobody pruned


@torch.no_grad()
def attach_supports(model: nn.Module, supports: Mapping[str, Tensor]) -> None:
    """Give the linears of an exported model their SparseLinears back, in place.

    Raises ValueError where the supports are not those of this model's weights.
    """
    _check_same_linears(model, supports)
    for name, linear in visit_linears(model, changes=True):
        if name in supports:
            keep = supports[name].to(linear.weight.device)
            _check_holds(saved_name(model, name), linear, keep)
            model.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))


def _check_same_linears(model: nn.Module, supports: Mapping[str, Tensor]) -> None:
    """Raise ValueError on a support without a linear, or a sparse linear without a support.

    A linear without a support stayed dense.
    """
    linears = prunable_linears(model)
    odd = sorted(saved_name(model, name) for name in set(supports) - set(linears))
    if linears.keys() - supports.keys():
        odd += sorted(
            saved_name(model, name)
            for name, linear in visit_linears(model)
            if name not in supports
            and int(linear.weight.count_nonzero()) < DENSE * linear.weight.numel()
        )
    if odd:
        raise ValueError(
            f"the masks file and the model differ in their linears, first in {odd[0]}; give the "
            "masks of this model, and prunable.include and exclude as in the run that wrote them"
        )


def _check_holds(name: str, linear: nn.Linear, keep: Tensor) -> None:
    if keep.shape != linear.weight.shape or linear.weight.masked_fill(keep, 0).any():
        raise ValueError(
            f"{name}: the support in the masks file does not hold this weight; it belongs to "
            "another checkpoint"
        )


@torch.no_grad()
def adopt(model: nn.Module, supports: Mapping[str, Tensor] | None) -> dict[str, float]:
    """Give an already pruned model its SparseLinears; returns the sparsity of each linear.

    Support: the given one where there is one, else where the weight is not zero.  A linear that is
    never called, or that given supports leave out, stays as it is.  Raises
    ValueError where a given support does not fit the model or leaves out a non-zero weight.
    """
    if supports is not None:
        _check_same_linears(model, supports)
    rates, total = {}, LinearCount(0, 0)
    for name, linear in visit_linears(model, changes=True):
        zeros = count_zeros(linear)
        rates[name], total = zeros.sparsity, total + zeros
        if is_never_called(linear) or (supports is not None and name not in supports):
            continue
        keep = linear.weight != 0 if supports is None else supports[name].to(linear.weight.device)
        _check_holds(saved_name(model, name), linear, keep)
        sparse = SparseLinear(linear.weight, linear.bias, keep)
        model.set_submodule(name, sparse)
        count = LinearCount(keep.numel() - int(keep.count_nonzero()), keep.numel())
        rates[name] = count.sparsity
    if not total.zeros:
        raise ValueError(NO_ZERO)
    source = "zeros" if supports is None else "masks file"
    log.info("existing support from its %s: %d zeros, %.6f", source, total.zeros, total.sparsity)
    return rates


def attach_whole(model: nn.Module) -> dict[str, float]:
    """Give a dense model SparseLinears that keep every weight; returns the sparsity of each, 0.

    A linear that is never called stays as it is.
    """
    rates = {}
    for name, linear in visit_linears(model, changes=True):
        rates[name] = 0.0
        if not is_never_called(linear):
            keep = torch.ones_like(linear.weight, dtype=torch.bool)
            model.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))
    return rates


@torch.no_grad()
def check_existing(
    model: nn.Module, supports: Mapping[str, Tensor] | None, pattern: Pattern
) -> None:
    """Raise ValueError where the support breaks the `pattern` that a run is to hold, or is whole.

    Warns where no pattern is asked for and the support follows one: methods that move zeros would
    break it.  supports: bool (O, I) by linear name, None where the zeros are the support.
    """
    if supports is not None:
        _check_same_linears(model, supports)
    sizes = list(SIZES) if pattern.unstructured else [pattern.group_size]
    seen = []
    for name, linear in visit_linears(model):
        if is_never_called(linear) or (supports is not None and name not in supports):
            continue
        keep = linear.weight != 0 if supports is None else supports[name]
        most = most_in_group(pack(keep).cpu().numpy(), keep.shape[1], sizes)
        zeros = keep.numel() - int(keep.count_nonzero())
        support = Support(tuple(keep.shape), str(linear.weight.dtype), zeros, most)
        if not pattern.unstructured and (broken := _broken(support, pattern)):
            raise ValueError(
                f"pattern {pattern} does not hold in this pruned checkpoint: "
                f"{saved_name(model, name)} {broken}; set "
                "pattern=unstructured, or give the dense model and a pruner"
            )
        seen.append(support)
    if supports is None and not any(support.zeros for support in seen):
        raise ValueError(NO_ZERO)
    common = _common_pattern(seen) if pattern.unstructured else Pattern()
    if not common.unstructured:
        log.warning(
            "the support of this checkpoint is %s, but pattern=unstructured lets methods that "
            "move zeros break it; set pattern=%s to keep it",
            common,
            common,
        )


def _broken(support: Support, pattern: Pattern) -> str:
    """A phrase that says how this support breaks an N:M or mixed pattern; empty where it holds."""
    try:
        kept = pattern.at(support.sparsity).kept
    except ValueError as error:
        return f"has {error}"
    most = support.most[pattern.group_size]
    return f"keeps {most} of {pattern.group_size} consecutive inputs" if most > kept else ""


def _common_pattern(supports: list[Support]) -> Pattern:
    """The pattern that all supports hold, leaving out linears that keep no weight."""
    kept = [support for support in supports if support.zeros < support.weights]
    shared = pattern_of(kept) if kept else Pattern()
    return shared if shared.unstructured or not any(_broken(s, shared) for s in kept) else Pattern()

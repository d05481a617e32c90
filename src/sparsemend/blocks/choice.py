"""Mark the linears that `prunable.include` and `prunable.exclude` leave dense.

The mark is an attribute of the module, so that a copy of the model has it too; no other code tells
such a linear from what is no linear at all.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from torch import nn

from sparsemend.blocks.find import LEFT_DENSE, find_blocks, prunable_linears
from sparsemend.blocks.names import saved_name
from sparsemend.config.kinds import kinds
from sparsemend.config.prunable import PrunableNames

log = logging.getLogger(__name__)


def choose_(model: nn.Module, prunable: PrunableNames) -> None:
    """Leave dense what the patterns say, in place, instead of what an earlier choice left dense.

    Raises ValueError, with the model as it was, on a pattern that matches nothing and where no
    linear is left.
    """
    linears = _every_linear(model)
    saved = {name: saved_name(model, name) for name in linears}
    prunable.check(saved)
    _mark_(linears, {name for name, other in saved.items() if not prunable.allow(name, other)})


def choose_as_(model: nn.Module, other: nn.Module) -> None:
    """Leave dense in `model`, in place, the linears that stay dense in `other`, by name."""
    _mark_(_every_linear(model), dense_linears(other).keys())


def report_choice(model: nn.Module, prunable: PrunableNames) -> None:
    """Log which linears stay dense, and warn where the patterns let routers be pruned."""
    every = [saved_name(model, name) for name in _every_linear(model)]
    if dense := dense_linears(model):
        names = kinds((saved_name(model, name) for name in dense), every)
        log.info("%d linears stay dense: %s", len(dense), ", ".join(names))
    saved = {name: saved_name(model, name) for name in prunable_linears(model)}
    if routers := prunable.routers_let_in(saved):
        log.warning(
            "%s may be pruned: the default prunable.exclude leaves them dense, and yours lacks its "
            "patterns",
            ", ".join(kinds((saved[name] for name in routers), every)),
        )


def dense_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of the decoder blocks that a choice leaves dense, by full name."""
    linears = _every_linear(model)
    return {name: linear for name, linear in linears.items() if LEFT_DENSE in vars(linear)}


def _mark_(linears: Mapping[str, nn.Linear], dense: Collection[str]) -> None:
    for name, linear in linears.items():
        vars(linear).pop(LEFT_DENSE, None)
        if name in dense:
            vars(linear)[LEFT_DENSE] = True


def _every_linear(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of the decoder blocks, dense or not, by full name."""
    prefix, blocks = find_blocks(model)
    return {
        f"{prefix}.{index}.{name}": module
        for index, block in enumerate(blocks)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }

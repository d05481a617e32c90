"""Pairs of every block of a model and its dense twin, each with its inputs.

Where both get the same inputs one walk is enough: the twin runs on the walker's hidden states, so
that no second set of them is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from sparsemend.blocks.residency import home_of, residency_of
from sparsemend.blocks.walk import Calibration, Visit


@dataclass(frozen=True)
class BlockPair:
    """The tuned block with its inputs, and the dense block with those that give the targets."""

    tuned: Visit
    dense: Visit


def pairs(
    model: nn.Module, dense: nn.Module, calibration: Calibration, stream: str
) -> Iterator[BlockPair]:
    """Yield every block in order; later inputs come from the block as the loop body leaves it.

    stream: the model whose outputs both blocks get as inputs, `sparse` or `dense`; with `cross`
    each block gets its own model's.  The dense model stays where it was loaded, except for its
    visited block; so does the other model where the calibration offloads.
    """
    of_dense = replace(calibration, offload=True)
    if stream == "cross":
        for visit, twin in zip(
            calibration.walk(model, changes=True), of_dense.walk(dense), strict=True
        ):
            yield BlockPair(visit, twin)
    elif stream == "sparse":
        for visit in calibration.walk(model, changes=True):
            with borrow(visit, dense, calibration.device) as twin:
                yield BlockPair(visit, twin)
    else:
        for visit in of_dense.walk(dense):
            with borrow(visit, model, calibration.device, changes=True) as model_visit:
                yield BlockPair(model_visit, visit)


@contextmanager
def borrow(
    visit: Visit, other: nn.Module, device: torch.device | None, *, changes: bool = False
) -> Iterator[Visit]:
    """Visit the same block of `other` on the visit's inputs; it lives on `device` meanwhile."""
    residency, place = residency_of(other), device or home_of(other)
    with residency.resident(visit.index, place, offload=True, changes=changes) as block:
        yield replace(visit, block=block)

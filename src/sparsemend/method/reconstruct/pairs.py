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

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import Carried, home_of, residency_of
from sparsemend.blocks.walk import Calibration, Visit


@dataclass(frozen=True)
class BlockPair:
    """The tuned block with its inputs, and the dense block with those that give the targets."""

    tuned: Visit
    dense: Visit


def pairs(
    model: nn.Module, dense: nn.Module, calibration: Calibration, stream: str, carried: Carried
) -> Iterator[BlockPair]:
    """Yield every block in order; later inputs come from the block as the loop body leaves it.

    stream: the model whose outputs both blocks get as inputs, `sparse` or `dense`; with `cross`
    each block gets its own model's.  The dense model stays where it was loaded, except for its
    visited block; so does the other model where the calibration offloads.  carried: kept beside the
    blocks of a streamed model, whose finished ones are left out.
    """
    of_dense = replace(calibration, offload=True)
    if stream == "dense":
        finished = residency_of(model).take_up(carried)
        walked = of_dense.walk(dense) if finished < len(find_blocks(model)[1]) else ()
        for visit in walked:
            if visit.index >= finished:
                with borrow(visit, model, calibration.device, carried) as model_visit:
                    yield BlockPair(model_visit, visit)
        return
    twins = of_dense.walk(dense)  # which begins where it is first asked
    for visit in calibration.walk(model, changes=True, carried=carried):
        if stream == "cross":
            yield BlockPair(visit, next(twin for twin in twins if twin.index == visit.index))
            if visit.index + 1 == visit.count:
                assert next(twins, None) is None  # its last block goes back
        else:
            with borrow(visit, dense, calibration.device) as twin:
                yield BlockPair(visit, twin)


@contextmanager
def borrow(
    visit: Visit, other: nn.Module, device: torch.device | None, carried: Carried | None = None
) -> Iterator[Visit]:
    """Visit the same block of `other` on the visit's inputs; it lives on `device` meanwhile.

    carried: what is kept beside the block that the body changes; None where it changes none.
    """
    residency, place = residency_of(other), device or home_of(other)
    changes = carried is not None
    with residency.resident(
        visit.index, place, offload=True, changes=changes, carried=carried
    ) as block:
        yield replace(visit, block=block)

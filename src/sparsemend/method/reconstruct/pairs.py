"""Every block of a model beside its dense twin, each on the inputs it is to be given.

Where both are given the same inputs one walk is enough: the twin is run on the walker's hidden
states, so that a second set of them need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.walk import Visit, walk


@dataclass(frozen=True)
class BlockPair:
    """The block that is tuned, on its inputs, and the dense one on those its targets come from."""

    tuned: Visit
    dense: Visit


def pairs(
    model: nn.Module,
    dense: nn.Module,
    batches: Sequence[Tensor],
    stream: str,
    *,
    device: torch.device,
    offload: bool,
) -> Iterator[BlockPair]:
    """Every block in order; what the loop body makes of it is what later inputs come from.

    stream: whose outputs both blocks are given, `sparse` or `dense`, or `cross`: each its own
    model's.  The dense model stays where it was loaded, its visited block apart; so does the other
    model with `offload`.
    """
    if stream == "cross":
        tuned = walk(model, batches, device=device, offload=offload)
        twins = walk(dense, batches, device=device, offload=True)
        for one, twin in zip(tuned, twins, strict=True):
            yield BlockPair(one, twin)
    elif stream == "sparse":
        for visit in walk(model, batches, device=device, offload=offload):
            with borrow(visit, dense, device) as twin:
                yield BlockPair(visit, twin)
    else:
        for visit in walk(dense, batches, device=device, offload=True):
            with borrow(visit, model, device) as one:
                yield BlockPair(one, visit)


@contextmanager
def borrow(visit: Visit, other: nn.Module, device: torch.device) -> Iterator[Visit]:
    """The block of `other` at the visited place, on the visit's inputs; on `device` meanwhile."""
    block = find_blocks(other)[1][visit.index]
    home = next(block.parameters()).device
    block.to(device)
    try:
        yield replace(visit, block=block)
    finally:
        block.to(home)

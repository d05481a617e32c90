"""Where the weights of a model's decoder blocks lie while nobody works on them.

`InMemory` is the ordinary case: the model holds them.  A streamed model is a skeleton whose blocks
lie in files; its residency brings one in, and writes it back where it was changed.  Whoever works
on blocks asks for one, `residency_of(model).resident(index, device)`, and never cares which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import torch
from torch import nn

from sparsemend.blocks.find import find_blocks, linears_of

ATTRIBUTE = "_block_residency"


class Residency(ABC):
    """Brings the blocks of one model in, one at a time, and takes them back.

    streams: whether the weights of a block are there only while it is resident.
    """

    streams: ClassVar[bool]

    @abstractmethod
    def resident(
        self, index: int, device: torch.device, *, offload: bool = False, changes: bool = False
    ) -> AbstractContextManager[nn.Module]:
        """Block `index` of the model, whole, with its weights on `device` while the body runs.

        offload: it lies elsewhere and goes back there; otherwise a model in memory stays where it
        is.  changes: the body may change weights, supports and the kind of linears; without it a
        change may be lost.  A body that raises changes nothing that is stored.
        """


class InMemory(Residency):
    """The blocks of a model that holds its weights itself."""

    streams = False

    def __init__(self, model: nn.Module) -> None:
        self._blocks = find_blocks(model)[1]
        self._home = home_of(model)

    @contextmanager
    def resident(
        self, index: int, device: torch.device, *, offload: bool = False, changes: bool = False
    ) -> Iterator[nn.Module]:
        block = self._blocks[index]
        if offload:
            block.to(device)
        try:
            yield block
        finally:
            if offload:
                block.to(self._home)


def attach_residency(model: nn.Module, residency: Residency) -> None:
    """Let `residency_of` give this residency for `model`."""
    vars(model)[ATTRIBUTE] = residency


def residency_of(model: nn.Module) -> Residency:
    """The residency of a model's blocks: what was attached, else its own memory."""
    attached: Residency | None = vars(model).get(ATTRIBUTE)
    return InMemory(model) if attached is None else attached


def streams(model: nn.Module) -> bool:
    """Whether the weights of this model's blocks are there only while a block is resident."""
    attached: Residency | None = vars(model).get(ATTRIBUTE)
    return attached is not None and attached.streams


def home_of(model: nn.Module) -> torch.device:
    """The device of a model, or of what a streamed one holds outside its blocks."""
    return next(p.device for p in model.parameters() if not p.is_meta)


def move_(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, in place; of a streamed one what lies outside its blocks."""
    if not streams(model):
        nn.Module.to(model, device)
        return
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


def visit_linears(
    model: nn.Module, device: torch.device | None = None, *, changes: bool = False
) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear of the blocks with its full name, its weight there until the next is asked for.

    For work that reads or changes weights one by one and calls no block.
    """
    prefix, blocks = find_blocks(model)
    residency = residency_of(model)
    place = device or next(model.parameters()).device
    for index in range(len(blocks)):
        with residency.resident(index, place, changes=changes) as block:
            for name, linear in linears_of(block).items():
                yield f"{prefix}.{index}.{name}", linear

"""Where the weights of a model's decoder blocks lie while nobody works on them.

`InMemory` is the ordinary case: the model holds them.  A streamed model is a skeleton whose blocks
lie in files; its residency brings one in, and writes it back where it was changed.  Whoever works
on blocks asks for one, `residency_of(model).resident(index, device)`, and never cares which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from sparsemend.blocks.find import find_blocks, linears_of
from sparsemend.blocks.room import return_freed
from sparsemend.terminal import StageLines

ATTRIBUTE = "_block_residency"


class Carried(Protocol):
    """What a loop over blocks hands from one to the next, besides the blocks themselves."""

    def to_carry(self) -> Mapping[str, Any]:
        """It as JSON values, which are kept with a finished block."""

    def carry_on_(self, values: Mapping[str, Any]) -> None:
        """Take up what `to_carry` gave after the last finished block."""


class Residency(ABC):
    """Brings the blocks of one model in, one at a time, and takes them back.

    streams: whether the weights of a block are there only while it is resident.
    """

    streams: ClassVar[bool]

    @property
    def place(self) -> Path | None:
        """The folder for changed blocks; None where there is none, or none is needed."""
        return None

    @abstractmethod
    def resident(
        self,
        index: int,
        device: torch.device,
        *,
        offload: bool = False,
        changes: bool = False,
        carried: Carried | None = None,
    ) -> AbstractContextManager[nn.Module]:
        """Block `index` of the model, whole, with its weights on `device` while the body runs.

        offload: it lies elsewhere and goes back there; otherwise a model in memory stays where it
        is.  changes: the body may change weights, supports and the kind of linears; without it a
        change may be lost.  carried: kept beside the changed block.  A body that raises, or is left
        by `break`, changes nothing that is stored.
        """

    def begin(self, stage: str, key: str | None = None) -> None:
        """Changes from here on are those of `stage`, and start from the blocks as they are now.

        key: of all that decides them; an earlier attempt's blocks with this key are taken up by the
        next loop that changes blocks.  None: there are none, and none are left for a later one.
        """
        return

    def take_up(self, carried: Carried | None = None) -> int:
        """How many first blocks the loop that begins here finds finished, each counted once."""
        return 0

    def stamp(self, index: int) -> str | None:
        """A hash that tells a changed block from what other attempts made of it; None in memory."""
        return None

    def read_in(self, dtype: torch.dtype) -> None:
        """Bring blocks in with their weights rounded to `dtype` from now on, which no file keeps.

        Nothing to do where the weights are in memory: whoever asks turns those.
        """
        return

    def fingerprint(self) -> str | None:
        """A hash that tells these blocks from others; None where their weights themselves must."""
        return None


class InMemory(Residency):
    """The blocks of a model that holds its weights itself."""

    streams = False

    def __init__(self, model: nn.Module) -> None:
        self._blocks = find_blocks(model)[1]
        self._home = home_of(model)

    @contextmanager
    def resident(
        self,
        index: int,
        device: torch.device,
        *,
        offload: bool = False,
        changes: bool = False,
        carried: Carried | None = None,
    ) -> Iterator[nn.Module]:
        block = self._blocks[index]
        if offload:
            block.to(device)
        try:
            yield block
        finally:
            if offload:
                block.to(self._home)
            if changes:  # supports, which stay, lie between what was freed
                return_freed()


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
    devices = [p.device for p in model.parameters() if not p.is_meta]
    return devices[0] if devices else torch.device("meta")


def move_(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, in place; of a streamed one what lies outside its blocks."""
    if not streams(model):
        nn.Module.to(model, device)
        return
    for module in model.modules():
        module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device), False)


def visit_blocks(
    model: nn.Module,
    device: torch.device | None = None,
    *,
    offload: bool = False,
    changes: bool = False,
    carried: Carried | None = None,
) -> Iterator[tuple[int, str, nn.Module]]:
    """(index, name, block) of every block in order, resident until the next is asked for.

    For work that calls no block.  device: None for the model's own.  With `changes`, those that an
    earlier attempt has finished are left out.
    """
    prefix, blocks = find_blocks(model)
    residency, place = residency_of(model), device or home_of(model)
    for index in range(residency.take_up(carried) if changes else 0, len(blocks)):
        with residency.resident(
            index, place, offload=offload, changes=changes, carried=carried
        ) as block:
            yield index, f"{prefix}.{index}", block


@contextmanager
def outside_on(model: nn.Module, device: torch.device, home: torch.device) -> Iterator[None]:
    """Have on `device`, while the body runs, what a model has at `home` outside its blocks.

    `residency_of` must be asked before: it brings blocks back to where the model is then.
    """
    if device == home:
        yield
        return
    inside = {module for block in find_blocks(model)[1] for module in block.modules()}
    outside = [module for module in model.modules() if module not in inside]
    for module in outside:
        module._apply(lambda tensor: tensor.to(device), recurse=False)
    try:
        yield
    finally:
        for module in outside:
            module._apply(lambda tensor: tensor.to(home), recurse=False)


def visit_linears(
    model: nn.Module,
    device: torch.device | None = None,
    *,
    changes: bool = False,
    what: str | None = None,
) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear of the blocks with its full name, its weight there until the next is asked for.

    For work that reads or changes weights one by one and calls no block.  what: a word for it, to
    show how far it is.
    """
    blocks = find_blocks(model)[1]
    count = sum(len(linears_of(block)) for block in blocks)
    lines = None if what is None else StageLines(what, count)
    done = 0
    for _, block_name, block in visit_blocks(model, device, changes=changes):
        for name, linear in linears_of(block).items():
            yield f"{block_name}.{name}", linear
            done += 1
            if lines is not None:
                lines.tick(done)

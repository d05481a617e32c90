"""The arguments of a block besides its hidden states: kept per batch, shared where equal.

Most families hand a block the same arguments whatever the tokens (masks, rotary tables).  Some do
not: Gemma-3n hands every block its own embedding of the tokens, Zamba the embedded tokens, and a
dictionary carries keys and values from earlier blocks to later ones.  Such a container belongs to
one batch of one walk, and all blocks of that batch write to it and read from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsemend.blocks.hidden_states import HiddenStates


@dataclass(frozen=True)
class BlockArguments:
    """The arguments of a block besides its hidden states."""

    positional: tuple[Any, ...]
    keyword: dict[str, Any]

    def with_each(self, change: Callable[[Any], Any]) -> BlockArguments:
        """The arguments with every value changed."""
        return BlockArguments(
            tuple(map(change, self.positional)),
            {key: change(value) for key, value in self.keyword.items()},
        )


@dataclass(frozen=True)
class Recorded:
    """What the blocks of a model are given in a forward, by batch.

    states: hidden states of the first block, (B, T, D) or as the family has them.  shapes: (B, T).
    arguments: of every block, of every batch; batches share the values that are equal.
    """

    states: HiddenStates
    shapes: list[torch.Size]
    arguments: list[list[BlockArguments]]

    @property
    def depend_on_tokens(self) -> bool:
        """Whether batches of one shape have arguments of their own."""
        first: dict[torch.Size, int] = {}
        places = [first.setdefault(shape, number) for number, shape in enumerate(self.shapes)]
        return any(
            calls[number] is not calls[place]
            for calls in self.arguments
            for number, place in enumerate(places)
        )


@dataclass
class Placement:
    """Moves the arguments of one batch to a device, block after block of one walk.

    containers: a copy for this walk by the id of the recorded one.
    """

    device: torch.device
    containers: dict[int, Any] = field(default_factory=dict)

    def of(self, arguments: BlockArguments, moved: dict[int, Tensor]) -> BlockArguments:
        """The arguments on the device.  moved: tensors there already, by the id of the recorded."""
        return arguments.with_each(lambda value: self._place(value, moved))

    def _place(self, value: Any, moved: dict[int, Tensor]) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in moved:
                moved[id(value)] = value.to(self.device)
            return moved[id(value)]
        if isinstance(value, tuple):
            return tuple_like(value, [self._place(item, moved) for item in value])
        if not isinstance(value, MutableMapping | list):
            return value
        if id(value) not in self.containers:
            mine = copy.copy(value)
            for key, item in list(_items(value)):
                mine[key] = self._place(item, moved)
            self.containers[id(value)] = mine
        return self.containers[id(value)]


def place_all(calls: list[BlockArguments], placements: list[Placement]) -> list[BlockArguments]:
    """The arguments of one block, by batch, on the device; one object where batches share it."""
    moved: dict[int, Tensor] = {}
    shared: dict[int, BlockArguments] = {}
    arguments = []
    for call, placement in zip(calls, placements, strict=True):
        ready = placement.of(call, moved)
        if not carries(call):
            ready = shared.setdefault(id(call), ready)
        arguments.append(ready)
    return arguments


def carries(arguments: Any) -> bool:
    """Whether the arguments hold a container, which blocks may write to."""
    if isinstance(arguments, BlockArguments):
        return any(map(carries, (*arguments.positional, *arguments.keyword.values())))
    if isinstance(arguments, tuple):
        return any(map(carries, arguments))
    return isinstance(arguments, MutableMapping | list)


def _items(container: Any) -> Any:
    return container.items() if isinstance(container, MutableMapping) else enumerate(container)


def tuple_like(like: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """A tuple of `items` of the same kind as `like`, which may have named fields."""
    return type(like)(*items) if hasattr(like, "_fields") else tuple(items)


def returned_like(returned: Any, state: Any) -> Any:
    """`state` in the form in which a block returned `returned`: alone, or first of several values.

    The other values are None.
    """
    if isinstance(returned, Tensor):
        return state
    items = [state, *[None] * (len(returned) - 1)]
    return tuple_like(returned, items) if isinstance(returned, tuple) else items


def same(one: Any, other: Any) -> bool:
    """Whether two arguments hold equal tensors; other values need the same type."""
    if isinstance(one, BlockArguments) and isinstance(other, BlockArguments):
        return same(one.positional, other.positional) and same(one.keyword, other.keyword)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = one.shape == other.shape and one.dtype == other.dtype
        return one is other or (equal and bool(torch.equal(one, other)))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, MutableMapping) and isinstance(other, MutableMapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other)


def sharing(earlier: Any, later: Any) -> Any:
    """`later` with the objects of `earlier` where they are equal, so that they are kept once."""
    if isinstance(later, BlockArguments):
        if same(earlier, later):
            return earlier
        return BlockArguments(
            sharing(earlier.positional, later.positional),
            {k: sharing(earlier.keyword.get(k), v) for k, v in later.keyword.items()},
        )
    if isinstance(later, Tensor) and isinstance(earlier, Tensor):
        return earlier if same(earlier, later) else later
    if isinstance(later, tuple) and isinstance(earlier, tuple) and len(earlier) == len(later):
        return tuple_like(later, list(map(sharing, earlier, later)))
    return later

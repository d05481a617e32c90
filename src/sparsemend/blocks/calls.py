"""Record the arguments of every decoder block, in forwards that compute no block.

Each block has keyword arguments of its own (Gemma2 hands its blocks different masks); the hidden
states are those of the first block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class StopForward(Exception):
    """Ends a forward as soon as it has given what was wanted of it."""


@dataclass(frozen=True)
class BlockArguments:
    """The arguments of a block besides its hidden states."""

    positional: tuple[Any, ...]
    keyword: dict[str, Any]

    def on(self, device: torch.device) -> BlockArguments:
        return BlockArguments(
            tuple(_to_device(value, device) for value in self.positional),
            {key: _to_device(value, device) for key, value in self.keyword.items()},
        )


# hidden states (B, T, D) per batch, and per block its arguments per batch size
Recorded = tuple[list[Tensor], list[dict[int, BlockArguments]]]


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    return value


@torch.no_grad()
def record_calls(model: nn.Module, blocks: nn.ModuleList, batches: Sequence[Tensor]) -> Recorded:
    """First block's hidden states per batch, and every block's arguments per batch size.

    Arguments come from one forward per batch size, in which each block only notes its
    arguments and hands its input on.
    """
    home = next(model.parameters()).device
    states = []
    arguments: list[dict[int, BlockArguments]] = [{} for _ in blocks]
    for number, batch in enumerate(batches):
        tokens = batch.to(home)
        size = tokens.shape[0]
        # the second batch is recorded whole as well, to see that tokens do not change the arguments
        whole = size not in arguments[0] or number == 1
        state, *called = _first_call(model, blocks, tokens, whole=whole)
        states.append(state.clone())
        for index, call in enumerate(called):
            earlier = arguments[index].setdefault(size, call)
            if not _same(earlier.positional, call.positional) or not _same(
                earlier.keyword, call.keyword
            ):
                raise ValueError(
                    f"block {index} of {type(model).__name__} is given arguments that depend on "
                    "the tokens; a block-wise walk cannot propagate them, so this family is not "
                    "supported"
                )
    return states, arguments


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments of a block hold equal tensors; other values need the same type."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other)


def _first_call(
    model: nn.Module, blocks: nn.ModuleList, tokens: Tensor, *, whole: bool
) -> list[Any]:
    """[hidden states, arguments of block 0, of block 1, ...]; only the first unless `whole`."""
    calls: list[Any] = []
    last = len(blocks) - 1

    def note(index: int) -> Callable[..., Any]:
        def call(*positional: Any, **keyword: Any) -> Any:
            hidden, rest, named = _split(positional, keyword)
            if index == 0:
                calls.append(hidden)
                if not whole:
                    raise StopForward
            calls.append(BlockArguments(rest, named))
            if index == last:
                raise StopForward
            return (hidden,) if returns_tuple else hidden

        return call

    returns_tuple = _returns_tuple(model, blocks[0], tokens) if whole else False
    notes = [(block, note(index)) for index, block in enumerate(blocks)]
    with _forwards_replaced(notes), suppress(StopForward):
        model(input_ids=tokens, use_cache=False)
    return calls


def _split(
    positional: tuple[Any, ...], keyword: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if positional:
        return positional[0], positional[1:], dict(keyword)
    rest = dict(keyword)
    return rest.pop("hidden_states"), (), rest


def _returns_tuple(model: nn.Module, block: nn.Module, tokens: Tensor) -> bool:
    """Whether this family's blocks return a tuple (older ones) or the bare hidden states."""
    kinds: list[bool] = []

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        kinds.append(isinstance(output, tuple))
        raise StopForward

    handle = block.register_forward_hook(look)
    try:
        model(input_ids=tokens[:1], use_cache=False)
    except StopForward:
        pass
    finally:
        handle.remove()
    return kinds[0]


@contextmanager
def _forwards_replaced(pairs: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    for module, call in pairs:
        module.forward = call
    try:
        yield
    finally:
        for module, _ in pairs:
            del module.forward  # the class's own forward shows again

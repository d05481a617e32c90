"""Record the arguments of every decoder block, in forwards that compute no block.

Each block has keyword arguments of its own (Gemma2 hands its blocks different masks); the hidden
states are those of the first block.  Before, block 0 computes a few tokens of one window, which
shows in what form a block returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.blocks.arguments import (
    BlockArguments,
    Recorded,
    returned_like,
    same,
    sharing,
)
from sparsemend.blocks.hidden_states import HiddenStates
from sparsemend.blocks.residency import home_of

PROBED = 8  # tokens that block 0 computes


class StopForward(Exception):
    """Ends a forward as soon as it has given what was wanted of it."""


Call = tuple[Tensor, list[BlockArguments]]  # hidden states of block 0, arguments of the blocks


@torch.no_grad()
def record_calls(
    model: nn.Module,
    blocks: nn.ModuleList,
    batches: Sequence[Tensor],
    hold: Callable[[Tensor, int], HiddenStates],
    *,
    every: bool = False,
) -> Recorded:
    """First block's hidden states, and every block's arguments, per batch.

    Arguments come from one forward per shape of a batch, in which each block only notes its
    arguments and hands its input on, and from one of other tokens: where that shows that
    arguments depend on the tokens, from one per batch.  every: from one per batch anyway, for
    batches of which only some are padded.  hold: makes the place of hidden states,
    from those of the first batch and the number of its tokens.
    """
    recorder = _Recorder(model, blocks)
    first: dict[torch.Size, int] = {}
    for number, batch in enumerate(batches):
        first.setdefault(batch.shape, number)
    whole = {number: recorder.call(batches[number]) for number in first.values()}
    depends = every
    if not every and (other := _other_tokens(batches)) is not None:
        whole[other] = recorder.call(batches[other])
        depends = not same(whole[0][1], whole[other][1])
    states = hold(whole[0][0], batches[0].numel())
    arguments: list[list[BlockArguments]] = [[] for _ in blocks]
    for number, batch in enumerate(batches):
        place = first[batch.shape]
        if number in whole:
            state, calls = whole[number]
        else:
            state, calls = recorder.call(batch) if depends else (recorder.state(batch), [])
        states.append(state)
        for index, recorded in enumerate(arguments):
            earlier = whole[place][1][index]
            call = calls[index] if depends and number != place else earlier
            recorded.append(sharing(earlier, call))
    return Recorded(states, [batch.shape for batch in batches], arguments)


@torch.no_grad()
def bytes_per_token(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> int:
    """Bytes of the first block's hidden states per token of a batch (B, T), rounded up."""
    return -(-_Recorder(model, blocks).state(tokens).nbytes // tokens.numel())


def _other_tokens(batches: Sequence[Tensor]) -> int | None:
    """The number of a batch that has the first one's shape and other tokens, if there is one."""
    first = batches[0]
    for number, batch in enumerate(batches):
        if batch.shape == first.shape and not torch.equal(batch, first):
            return number
    return None


class _Recorder:
    """Forwards of a model whose blocks note their arguments."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.model, self.blocks = model, blocks
        self._returned: Any = None  # by block 0, to tell a tuple from a tensor

    def state(self, tokens: Tensor) -> Tensor:
        """The hidden states that block 0 gets."""
        seen: list[Tensor] = []

        def note(*positional: Any, **keyword: Any) -> Any:
            seen.append(split_call(positional, keyword)[0].clone())
            raise StopForward

        self._forward(tokens, [(self.blocks[0], note)])
        return seen[0]

    def call(self, tokens: Tensor) -> Call:
        """The hidden states that block 0 gets, and the arguments of every block."""
        seen: list[Tensor] = []
        arguments: list[BlockArguments] = []
        last = len(self.blocks) - 1
        if self._returned is None and last:
            self._probe(tokens[:1, :PROBED])

        def note(index: int) -> Callable[..., Any]:
            def call(*positional: Any, **keyword: Any) -> Any:
                hidden, others = split_call(positional, keyword)
                arguments.append(others)
                if index == 0:
                    seen.append(hidden.clone())
                if index == last:
                    raise StopForward
                return returned_like(self._returned, hidden)

            return call

        self._forward(tokens, [(block, note(index)) for index, block in enumerate(self.blocks)])
        return seen[0], arguments

    def _forward(self, tokens: Tensor, notes: list[tuple[nn.Module, Callable[..., Any]]]) -> None:
        home = home_of(self.model)
        with forwards_replaced(notes), suppress(StopForward):
            self.model(input_ids=tokens.to(home), use_cache=False)

    def _probe(self, tokens: Tensor) -> None:
        """Note what block 0 returns for a few tokens, (1, T): the hidden states, or a tuple."""
        block = self.blocks[0]

        def note(*positional: Any, **keyword: Any) -> Any:
            self._returned = type(block).forward(block, *positional, **keyword)
            raise StopForward

        self._forward(tokens, [(block, note)])


def split_call(
    positional: tuple[Any, ...], keyword: dict[str, Any]
) -> tuple[Tensor, BlockArguments]:
    """The hidden states, and what else a block is given."""
    if positional:
        return positional[0], BlockArguments(positional[1:], dict(keyword))
    others = dict(keyword)
    if "hidden_states" not in others:
        raise ValueError(f"a block is given no hidden states, but {', '.join(others) or 'nothing'}")
    return others.pop("hidden_states"), BlockArguments((), others)


@contextmanager
def forwards_replaced(pairs: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let each module call the function beside it instead of its class's forward, in the body."""
    for module, call in pairs:
        module.forward = call
    try:
        yield
    finally:
        for module, _ in pairs:
            del module.forward  # the class's own forward shows again

"""The forwards of a whole model, also where its blocks are there only one at a time.

Of a model that streams, the hidden states of many batches go through the blocks in one walk; then
the model's own forward is run for every batch, in which each block only hands its input on and the
last one gives the states that the walk left.  What lies before, between and behind the blocks
(masks, final norm, head, soft caps, scaling) is so the model's own code, and equal batches give the
bits of a model in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsemend.blocks.arguments import returned_like
from sparsemend.blocks.calls import bytes_per_token, forwards_replaced, split_call
from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import home_of, move_, residency_of, streams
from sparsemend.blocks.states import StatesPlace
from sparsemend.blocks.walk import Calibration

T = TypeVar("T")


@torch.no_grad()
def forwards(
    model: nn.Module,
    batches: Sequence[Tensor],
    of: Callable[[int, Tensor], T],
    *,
    device: torch.device,
    states: StatesPlace,
    states_bytes: int,
) -> Iterator[tuple[T, bool]]:
    """(of(number, logits), settled) of every batch (B, T), in order; batches may differ in shape.

    Only `of` sees the logits (B, T, V), so that those of two batches are never held at once.
    settled: no other batch's hidden states are under way, so that a kill costs least now.  device:
    of the computation; a model in memory is expected there, and of one that streams what lies
    outside its blocks.  states: where the hidden states of a walk lie.  states_bytes: what they may
    take; a walk has as many batches as they allow, at least one.  Arguments of blocks that depend
    on the tokens come on top.
    """
    if not streams(model):
        for number, tokens in enumerate(batches):
            yield of(number, model(input_ids=tokens.to(device), use_cache=False).logits), True
        return
    first = 0
    for group in _groups(model, batches, states_bytes):
        walked = _walk(model, group, device, states)
        with _first_block(model):
            for number, tokens in enumerate(group):
                settled = number + 1 == len(group)
                yield of(first + number, walked.logits(model, number, tokens.to(device))), settled
        del walked  # before the next walk has hidden states of its own
        first += len(group)


def _first_block(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Have the first block there: some families ask their first weight where to compute."""
    return residency_of(model).resident(0, home_of(model))


def _groups(
    model: nn.Module, batches: Sequence[Tensor], states_bytes: int
) -> Iterator[Sequence[Tensor]]:
    """The batches in runs whose hidden states are no more than `states_bytes`, or of one batch."""
    if not batches:
        return
    with _first_block(model):
        most = states_bytes // bytes_per_token(model, find_blocks(model)[1], batches[0])
    first = tokens = 0
    for number, batch in enumerate(batches):
        if number > first and tokens + batch.numel() > most:
            yield batches[first:number]
            first, tokens = number, 0
        tokens += batch.numel()
    yield batches[first:]


@dataclass(frozen=True)
class _Walked:
    """The last block's outputs by batch, and the form in which blocks return them."""

    states: Sequence[Tensor]
    returned: Callable[[Tensor], Any]

    def logits(self, model: nn.Module, number: int, tokens: Tensor) -> Tensor:
        """The logits (B, T, V) of one batch, `tokens`."""
        *others, last = find_blocks(model)[1]
        state = self.states[number].to(tokens.device)

        def hand_on(*positional: Any, **keyword: Any) -> Any:
            return self.returned(split_call(positional, keyword)[0])

        def end(*positional: Any, **keyword: Any) -> Any:
            return self.returned(state)

        with forwards_replaced([*((block, hand_on) for block in others), (last, end)]):
            logits: Tensor = model(input_ids=tokens, use_cache=False).logits
        return logits


def _walk(
    model: nn.Module, batches: Sequence[Tensor], device: torch.device, place: StatesPlace
) -> _Walked:
    empty: Any = None  # what a block returns, without values, where it is no tensor

    def note(block: nn.Module, arguments: Any, returned: Any) -> None:
        nonlocal empty
        if not isinstance(returned, Tensor):
            empty = returned_like(returned, None)

    windows = Calibration(batches, device=device, together=None, states=place)
    for visit in windows.walk(model):
        if visit.index + 1 == visit.count:
            handle = visit.block.register_forward_hook(note)
            visit.advance_()
            handle.remove()
    states = visit.inputs
    if empty is None:
        return _Walked(states, lambda state: state)
    return _Walked(states, lambda state: returned_like(empty, state))


@contextmanager
def place_on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have the model on `device` while the body runs; of a streamed one what is not in blocks."""
    home = home_of(model)
    move_(model, device)
    try:
        yield
    finally:
        move_(model, home)

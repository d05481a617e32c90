"""The model-agnostic block loop: find the decoder blocks, visit them one by one.

`walk` yields a Visit per block; the next block's inputs are computed with the block as the loop
body leaves it, so every block-wise algorithm is an ordinary `for` loop.  Each block's
keyword arguments are recorded for that block (Gemma2 hands its blocks different masks); the
hidden states are recorded at the first block only and then updated in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsemend.blocks.calls import BlockArguments, Recorded, StopForward, record_calls
from sparsemend.blocks.find import find_blocks, linears_of
from sparsemend.blocks.observer import InputObserver
from sparsemend.blocks.statistics import Statistic, StatisticFactory


@dataclass
class Visit:
    """One block, its inputs, and the operations on them."""

    index: int
    count: int
    name: str
    block: nn.Module
    _states: list[Tensor]
    _arguments: dict[int, BlockArguments]
    _device: torch.device
    linears: dict[str, nn.Linear] = field(init=False)

    def __post_init__(self) -> None:
        self.linears = linears_of(self.block)

    def full_name(self, linear: str) -> str:
        """Name of one of this block's linears as seen from the model."""
        return f"{self.name}.{linear}"

    def replace(self, name: str, linear: nn.Linear) -> None:
        """Put `linear` in the place of the block's linear `name`."""
        self.block.set_submodule(name, linear)
        self.linears[name] = linear

    @torch.no_grad()
    def observe(self, factory: StatisticFactory) -> dict[str, Statistic]:
        """One pass over the calibration batches; a statistic per linear, fed by hooks.

        Linears that are handed the very same input tensor share one statistic object.
        """
        observer = InputObserver(self.linears, factory)
        with observer.hooks():
            for state in self._states:
                observer.start_batch(state)
                try:
                    self.forward(state)
                except StopForward:
                    continue
        return observer.statistics()

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """The block's outputs (B, T, D), one per batch, with the block as it is now."""
        return [self.forward(state).to(state.device) for state in self._states]

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The block's inputs (B, T, D), one per batch."""
        return self._states

    @torch.no_grad()
    def advance_(self) -> None:
        """Replace every input by the block's output, in place."""
        for state in self._states:
            state.copy_(self.forward(state))

    def forward(self, state: Tensor) -> Tensor:
        """The block's output (B, T, D) for one batch of inputs, gradients as the caller set."""
        arguments = self._arguments[state.shape[0]]
        output = self.block(state.to(self._device), *arguments.positional, **arguments.keyword)
        return output if isinstance(output, Tensor) else output[0]


def walk(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    device: torch.device | None = None,
    offload: bool = False,
    recorded: Recorded | None = None,
) -> Iterator[Visit]:
    """Visit the blocks in order with propagated activations.

    batches: token batches (B, T), all of one T.  With `offload` only the visited block lives on
    `device`; otherwise the model is expected there.  Hidden states stay on `device`.
    recorded: the output of `record` for this model and these batches; it stays unchanged.
    """
    prefix, blocks = find_blocks(model)
    home = next(model.parameters()).device
    device = device or home
    states, arguments = recorded or record_calls(model, blocks, batches)
    states = [state.to(device, copy=recorded is not None) for state in states]
    for index, block in enumerate(blocks):
        if offload:
            block.to(device)
        visit = Visit(
            index=index,
            count=len(blocks),
            name=f"{prefix}.{index}",
            block=block,
            _states=states,
            _arguments={size: call.on(device) for size, call in arguments[index].items()},
            _device=device,
        )
        try:
            yield visit
            if index + 1 < len(blocks):
                visit.advance_()
        finally:
            if offload:
                block.to(home)


def record(model: nn.Module, batches: Sequence[Tensor]) -> Recorded:
    """Record what `walk` reads of the batches before the first block; no mask changes any of it."""
    _, blocks = find_blocks(model)
    return record_calls(model, blocks, batches)

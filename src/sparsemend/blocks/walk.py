"""The model-agnostic block loop: find the decoder blocks, visit them one by one.

`Calibration.walk` yields a Visit per block; the next block's inputs are computed with the block as
the loop body leaves it, so every block-wise algorithm is an ordinary `for` loop.  Each block's
keyword arguments are recorded for that block (Gemma2 hands its blocks different masks); the
hidden states are recorded at the first block only and then updated in place.

A forward takes one sequence.  A matrix product with another number of rows may choose another
kernel, which rounds otherwise, and an expert mixes the tokens of its batch; so masks would depend
on the size of a batch.  With one sequence they depend on the windows and their order alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sparsemend.blocks.calls import BlockArguments, Recorded, StopForward, record_calls
from sparsemend.blocks.find import find_blocks, linears_of
from sparsemend.blocks.observer import InputObserver
from sparsemend.blocks.order import CallOrder
from sparsemend.blocks.statistics import Statistic, StatisticFactory

# As in the code of Wanda and SparseGPT, whose order of sums this keeps; one sequence of 2048 tokens
# fills a GPU.
FORWARD_SEQUENCES = 1


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
    def observe(
        self, factory: StatisticFactory, names: Collection[str] | None = None
    ) -> dict[str, Statistic]:
        """One pass over the calibration batches; a statistic per linear, fed by hooks.

        Linears that are handed the very same input tensor share one statistic object.  names: the
        linears to observe, None for all; a forward ends with the last of them.
        """
        observed = self.linears if names is None else {name: self.linears[name] for name in names}
        observer = InputObserver(observed, factory)
        with observer.hooks():
            for state in self._states:
                observer.start_batch(state)
                try:
                    self.forward(state)
                except StopForward:
                    continue
        return observer.statistics()

    @torch.no_grad()
    def call_groups(self) -> list[list[str]]:
        """The linears in groups, such that none reads what a later group computes."""
        order = CallOrder(self.block, self.linears)
        for state in self._states:
            with order.hooks():
                self.forward(state)
            if order.complete:
                break
        return order.groups()

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


@dataclass(frozen=True)
class Calibration:
    """Token windows, and where the blocks of a model see them.

    batches: windows (B, T), all of one T, in batches of any size; no result depends on it.
    device: of the visited block and of the hidden states; None where the model is.
    offload: bring only the visited block to `device`; otherwise the model is expected there.
    together: sequences of one forward; only work whose steps are batches takes another number.
    """

    batches: Sequence[Tensor]
    device: torch.device | None = None
    offload: bool = False
    together: int = FORWARD_SEQUENCES

    @property
    def windows(self) -> Tensor:
        """All windows (N, T); raises ValueError where there are none."""
        if not sum(map(len, self.batches)):
            raise ValueError("there are no calibration windows for a block to see; give some")
        return torch.cat(list(self.batches))

    def first(self, count: int) -> Calibration:
        """The first `count` windows; all of them where there are fewer."""
        return replace(self, batches=(self.windows[:count],))

    def walk(self, model: nn.Module, *, recorded: Recorded | None = None) -> Iterator[Visit]:
        """Visit the blocks of `model` in order with propagated activations.

        recorded: the output of `record` for this model; it stays unchanged.
        """
        prefix, blocks = find_blocks(model)
        home = next(model.parameters()).device
        device = self.device or home
        states, arguments = recorded or self.record(model)
        states = [state.to(device, copy=recorded is not None) for state in states]
        for index, block in enumerate(blocks):
            if self.offload:
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
                if self.offload:
                    block.to(home)

    def record(self, model: nn.Module) -> Recorded:
        """Record what `walk` reads before the first block; no mask changes any of it."""
        return record_calls(model, find_blocks(model)[1], self.windows.split(self.together))

"""The model-agnostic block loop: find the decoder blocks, visit them one by one.

`Calibration.walk` yields a Visit per block; the next block's inputs are computed with the block as
the loop body leaves it, so every block-wise algorithm is an ordinary `for` loop.  Each block's
arguments are recorded for that block (Gemma2 hands its blocks different masks), and for each batch
where they depend on the tokens; the hidden states are recorded at the first block only and then
updated in place.

A forward takes one sequence.  A matrix product with another number of rows may choose another
kernel, which rounds otherwise, and an expert mixes the tokens of its batch; so masks would depend
on the size of a batch.  With one sequence they depend on the windows and their order alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor, nn

from sparsemend.blocks.arguments import BlockArguments, Placement, Recorded, carries, place_all
from sparsemend.blocks.calls import StopForward, record_calls
from sparsemend.blocks.find import find_blocks, linears_of
from sparsemend.blocks.hidden_states import HiddenStates, NoStates
from sparsemend.blocks.observer import InputObserver
from sparsemend.blocks.order import CallOrder
from sparsemend.blocks.residency import Carried, home_of, outside_on, residency_of
from sparsemend.blocks.states import ON_DEVICE, StatesPlace
from sparsemend.blocks.statistics import Statistic, StatisticFactory
from sparsemend.terminal import StageLines

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
    _states: HiddenStates
    _shapes: list[torch.Size]  # (B, T)
    _arguments: list[BlockArguments]
    _device: torch.device
    _lines: StageLines
    _stamp: str | None
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
        self._lines.tick(self.index)

    @torch.no_grad()
    def observe(
        self, factory: StatisticFactory, names: Collection[str] | None = None
    ) -> dict[str, Statistic]:
        """One pass over the calibration batches; a statistic per linear, fed by hooks.

        Linears that are handed the very same input tensor share one statistic object.  One that no
        token reached has none.  names: the linears to observe, None for all; a forward ends with
        the last of them.
        """
        observed = self.linears if names is None else {name: self.linears[name] for name in names}
        observer = InputObserver(observed, factory)
        with observer.hooks():
            for batch, shape in enumerate(self._shapes):
                observer.start_batch(shape)
                try:
                    self.output(batch)
                except StopForward:
                    continue
        return observer.statistics()

    @torch.no_grad()
    def call_groups(self, names: Collection[str]) -> list[list[str]]:
        """These linears in groups, such that none reads what a later group computes."""
        order = CallOrder(self.block, {name: self.linears[name] for name in names})
        for batch in range(len(self._states)):
            with order.hooks():
                self.output(batch)
            if order.complete:
                break
        return order.groups()

    @torch.no_grad()
    def outputs(self) -> HiddenStates:
        """The block's outputs (B, T, D), one per batch, with the block as it is now.

        They lie where the inputs do.
        """
        outputs = self._states.empty_place()
        for batch in range(len(self._states)):
            outputs.append(self.output(batch))
        return outputs

    @property
    def inputs(self) -> HiddenStates:
        """The block's inputs (B, T, D), one per batch."""
        return self._states

    @property
    def sizes(self) -> list[int]:
        """The number of windows of every batch, B."""
        return [shape[0] for shape in self._shapes]

    @torch.no_grad()
    def advance_(self) -> None:
        """Replace every input by the block's output, in place where its dtype stays."""
        for batch in range(len(self._states)):
            self._states.put(batch, self.output(batch))
        self._states.turn(self._stamp)

    def output(self, batch: int) -> Tensor:
        """The block's output (B, T, D) for the inputs of one batch, gradients as the caller set."""
        return self._forward(self._states[batch], self._arguments[batch])

    def forward(self, state: Tensor) -> Tensor:
        """The block's output for windows (B, T, D) of any batches, gradients as the caller set.

        `check_free` must hold.  Raises ValueError where no batch of the walk has B windows.
        """
        sizes = self.sizes
        if len(state) not in sizes:
            raise ValueError(
                f"{self.name} was recorded on {sizes[0]} windows at once, not on {len(state)}; set "
                f"hardware.micro_batch={sizes[0]}"
            )
        return self._forward(state, self._arguments[sizes.index(len(state))])

    def check_free(self) -> None:
        """Raise ValueError where windows of several batches cannot pass the block together."""
        first: dict[torch.Size, BlockArguments] = {}
        for batch, (shape, arguments) in enumerate(zip(self._shapes, self._arguments, strict=True)):
            state = self._states.shape(batch)
            if state[:-1] != shape:
                raise ValueError(
                    f"the hidden states of {self.name} are {tuple(state)}, not a vector per "
                    f"token {tuple(shape)}, so windows cannot be drawn from several batches"
                )
            if first.setdefault(shape, arguments) is not arguments:
                raise ValueError(
                    f"the arguments of {self.name} depend on the tokens, so windows cannot be "
                    "drawn from several batches; choose another method"
                )

    def _forward(self, state: Tensor, arguments: BlockArguments) -> Tensor:
        self._lines.tick(self.index)
        output = self.block(state.to(self._device), *arguments.positional, **arguments.keyword)
        return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class Calibration:
    """Token windows, and where the blocks of a model see them.

    batches: windows (B, T), all of one T, in batches of any size; no result depends on it unless
        `together` is None.
    device: of the visited block and of the hidden states; None where the model is.
    offload: bring only the visited block to `device`; otherwise the model is expected there.
    together: sequences of one forward; only work whose steps are batches takes another number, and
        None where the batches, of any shapes, are the forwards.
    states: where the hidden states lie, which changes no bit.
    """

    batches: Sequence[Tensor]
    device: torch.device | None = None
    offload: bool = False
    together: int | None = FORWARD_SEQUENCES
    states: StatesPlace = ON_DEVICE

    @property
    def windows(self) -> Tensor:
        """All windows (N, T); raises ValueError where there are none."""
        if not sum(map(len, self.batches)):
            raise ValueError("there are no calibration windows for a block to see; give some")
        return torch.cat(list(self.batches))

    def bring(self, weight: Tensor) -> Tensor:
        """A weight on the device of the calibration."""
        return weight.to(self.device or weight.device)

    def first(self, count: int) -> Calibration:
        """The first `count` windows; all of them where there are fewer."""
        return replace(self, batches=(self.windows[:count],))

    def walk(
        self,
        model: nn.Module,
        *,
        recorded: Recorded | None = None,
        changes: bool = False,
        carried: Carried | None = None,
    ) -> Generator[Visit, None, None]:
        """Visit the blocks of `model` in order with propagated activations.

        recorded: the output of `record` for this model; it stays unchanged.
        changes: the loop's body changes the blocks, so that a streamed one is written back; those
        that an earlier attempt has finished are walked through, but not visited again.
        carried: what the body hands from block to block, taken up from the last of those.
        """
        prefix, blocks = find_blocks(model)
        lines = StageLines("blocks", len(blocks), tokens=sum(b.numel() for b in self.batches))
        device, residency = self.device or home_of(model), residency_of(model)
        finished = residency.take_up(carried) if changes else 0
        if finished == len(blocks):
            return
        recording, states, first = self._start(model, recorded, finished, changes=changes)
        placements = [Placement(device) for _ in recording.shapes]
        for index in range(first, len(blocks)):
            with residency.resident(
                index,
                device,
                offload=self.offload,
                changes=changes and index >= finished,
                carried=carried,
            ) as block:
                visit = Visit(
                    index=index,
                    count=len(blocks),
                    name=f"{prefix}.{index}",
                    block=block,
                    _states=states,
                    _shapes=recording.shapes,
                    _arguments=place_all(recording.arguments[index], placements),
                    _device=device,
                    _lines=lines,
                    _stamp=residency.stamp(index) if changes else None,
                )
                if index >= finished:
                    yield visit
                if index + 1 < len(blocks):
                    visit.advance_()
        if changes:  # whoever only looks may read what the last block gave
            states.forget()

    def _start(
        self, model: nn.Module, recorded: Recorded | None, finished: int, *, changes: bool
    ) -> tuple[Recorded, HiddenStates, int]:
        """What blocks are given, and the hidden states that enter the first block to walk through.

        They are those after the finished blocks where a killed walk left them.
        """
        if finished:
            states = self.states.after(residency_of(model).stamp(finished - 1))
            if states is not None:
                recording = self._record(model, lambda first, of: NoStates(first.device))
                alike = len(states) == len(recording.shapes)  # else another number together
                if alike and not any(map(carries, chain.from_iterable(recording.arguments))):
                    return recording, states, finished
        if recorded is not None:
            return recorded, recorded.states.copy(), 0
        recording = self.record(model, changes=changes)
        return recording, recording.states, 0

    def record(self, model: nn.Module, *, changes: bool = False) -> Recorded:
        """Record what `walk` reads before the first block; no mask changes any of it.

        On the device of the walk, block 0 too: another would round otherwise, and a host may lack
        the model's kernels or be slow in its dtype.  changes: for a walk that changes blocks, whose
        states in files a later attempt may take up.
        """
        device = self.device or home_of(model)
        tokens = sum(batch.numel() for batch in self.batches)

        def hold(first: Tensor, of: int) -> HiddenStates:
            return self.states.empty(device, first.nbytes * tokens // of, resumable=changes)

        return self._record(model, hold)

    def _record(self, model: nn.Module, hold: Callable[[Tensor, int], HiddenStates]) -> Recorded:
        together, blocks, residency = self.together, find_blocks(model)[1], residency_of(model)
        home = home_of(model)
        device = self.device or home
        with (
            residency.resident(0, device, offload=self.offload),
            outside_on(model, device, home),
        ):
            if together is None:
                return record_calls(model, blocks, self.batches, hold, every=True)
            return record_calls(model, blocks, self.windows.split(together), hold)

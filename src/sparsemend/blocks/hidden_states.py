"""The hidden states that enter a block of a walk, one tensor per batch, in memory.

They lie on the device of the walk or on the host, pinned where that is not the device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor


class HiddenStates(Sequence[Tensor]):
    """Hidden states by batch.  device: where what is read of them lies."""

    device: torch.device

    @abstractmethod
    def append(self, state: Tensor) -> None:
        """Add those of one more batch."""

    @abstractmethod
    def put(self, batch: int, state: Tensor) -> None:
        """Hand over the output of a block for a batch, which `turn` makes the batch's states."""

    def turn(self, stamp: str | None) -> None:
        """Go on to the outputs, all of which were put.  stamp: of the block that computed them."""
        return

    @abstractmethod
    def copy(self) -> HiddenStates:
        """The same states, to be changed on their own."""

    @abstractmethod
    def empty_place(self) -> HiddenStates:
        """A place of the same kind, for other states of the walk; nobody takes it up later."""

    def forget(self) -> None:
        """Let go of all of them: the walk is at its end."""
        return

    def shape(self, batch: int) -> torch.Size:
        """The shape of those of one batch."""
        return self.read(batch).shape

    def tokens(self, batch: int, first: int, last: int) -> Tensor:
        """Tokens `first` to `last`, without it, of those (B, T, D) of one batch."""
        return self.read(batch)[:, first:last]

    def row(self, batch: int, row: int) -> Tensor:
        """A row (T, D) of those (B, T, D) of one batch."""
        return self.read(batch)[row]

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return SomeStates(self, range(len(self))[index])
        return self.read(range(len(self))[index])

    @abstractmethod
    def read(self, batch: int) -> Tensor:
        """Those of one batch."""


@dataclass(frozen=True)
class SomeStates(Sequence[Tensor]):
    """Those of some batches, read one by one."""

    states: HiddenStates
    batches: range

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return SomeStates(self.states, self.batches[index])
        return self.states.read(self.batches[index])


class HeldStates(HiddenStates):
    """States in memory, each replaced as soon as it is put."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self.device, self.pinned = device, pinned
        self._tensors: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, batch: int) -> Tensor:
        return self._tensors[batch]

    def append(self, state: Tensor) -> None:
        held = state.to(self.device)
        self._tensors.append(held.pin_memory() if self.pinned else held)

    def put(self, batch: int, state: Tensor) -> None:
        held = self._tensors[batch]
        if state.dtype == held.dtype and state.shape == held.shape:
            held.copy_(state)
        else:  # the residual stream of a Mamba is fp32 after the first block
            self._tensors[batch] = state.to(self.device, copy=True)

    def copy(self) -> HeldStates:
        other = HeldStates(self.device, pinned=self.pinned)
        other._tensors = [tensor.clone() for tensor in self._tensors]
        return other

    def empty_place(self) -> HeldStates:
        return HeldStates(self.device, pinned=self.pinned)


class NoStates(HeldStates):
    """Lets go of what it is handed, where the states of a later block are there already."""

    def append(self, state: Tensor) -> None:
        return

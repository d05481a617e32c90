"""The hidden states that enter a block of a walk, one tensor per batch, and where they lie.

`HeldStates` are tensors on the device of the walk or on the host, pinned where that is not the
device.  `FileStates` are two files: while a block turns those in one into those in the other, the
first stays whole, and a stamp beside each says after which block it was written, so that a walk
that was killed goes on from there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from sparsemend.blocks.device_memory import free_bytes
from sparsemend.blocks.room import available_bytes
from sparsemend.files import write_json

CHANGES = "changes"  # the folder of the states of a walk that changes blocks
PREFIX = "walk-"  # of the folder of any other walk
SHARE = 4  # auto: of the memory that is free there, states take at most one part of so many


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

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self.read(number) for number in range(*index.indices(len(self)))]
        return self.read(range(len(self))[index])

    @abstractmethod
    def read(self, batch: int) -> Tensor:
        """Those of one batch."""


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


class NoStates(HeldStates):
    """Lets go of what it is handed, where the states of a later block are there already."""

    def append(self, state: Tensor) -> None:
        return


@dataclass(frozen=True)
class Entry:
    """The place of a batch in a file of states."""

    begin: int
    shape: list[int]
    dtype: str

    @property
    def kind(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class FileStates(HiddenStates):
    """States in the two files of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.device, self.folder = torch.device("cpu"), folder
        self._current = 0  # the file that is read
        self._entries: list[Entry] = []
        self._next: dict[int, Entry] = {}
        self._unstamp(0)
        self._unstamp(1)

    @classmethod
    def after(cls, folder: Path, stamp: str) -> FileStates | None:
        """Those that the block with this stamp computed, None where the folder lacks them."""
        for number in (0, 1):
            try:
                facts: dict[str, Any] = json.loads(_stamp_file(folder, number).read_text())
            except (OSError, ValueError):
                continue
            if facts["stamp"] == stamp:
                other = _stamp_file(folder, 1 - number)
                other.unlink(missing_ok=True)
                states = cls.__new__(cls)
                states.device, states.folder, states._current = torch.device("cpu"), folder, number
                states._entries = [Entry(**entry) for entry in facts["entries"]]
                states._next = {}
                return states
        return None

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, batch: int) -> Tensor:
        entry = self._entries[batch]
        tensor = torch.empty(entry.shape, dtype=entry.kind)
        with self._file(self._current).open("rb") as file:
            file.seek(entry.begin)
            file.readinto(_bytes(tensor))
        return tensor

    def append(self, state: Tensor) -> None:
        end = _end(self._entries[-1]) if self._entries else 0
        self._entries.append(self._write(self._current, end, state))

    def put(self, batch: int, state: Tensor) -> None:
        if not self._next:
            self._unstamp(1 - self._current)
        begin = _end(self._next[batch - 1]) if batch else 0
        self._next[batch] = self._write(1 - self._current, begin, state)

    def turn(self, stamp: str | None) -> None:
        self._entries, self._next = [self._next[n] for n in range(len(self))], {}
        self._current = 1 - self._current
        if stamp is not None:
            facts = {"stamp": stamp, "entries": [vars(entry) for entry in self._entries]}
            write_json(_stamp_file(self.folder, self._current), facts)

    def copy(self) -> FileStates:
        other = temporary(self.folder.parent)
        shutil.copyfile(self._file(self._current), other._file(0))
        other._entries = list(self._entries)
        return other

    def _write(self, number: int, begin: int, state: Tensor) -> Entry:
        host = state.detach().to("cpu").contiguous()
        path = self._file(number)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(begin)
            file.write(_bytes(host))
        return Entry(begin, list(host.shape), str(host.dtype).removeprefix("torch."))

    def _file(self, number: int) -> Path:
        return self.folder / f"states-{number}"

    def _unstamp(self, number: int) -> None:
        _stamp_file(self.folder, number).unlink(missing_ok=True)


def temporary(folder: Path) -> FileStates:
    """States in a folder of their own, which is removed with the last reference to them."""
    folder.mkdir(parents=True, exist_ok=True)
    states = FileStates(Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder)))
    weakref.finalize(states, shutil.rmtree, states.folder, True)
    return states


@dataclass(frozen=True)
class StatesPlace:
    """Where the hidden states of a walk are to lie.

    where: auto | device | host | file.  folder: for files; without one auto means none.
    """

    where: str = "device"
    folder: Path | None = None

    def empty(self, device: torch.device, size: int, *, resumable: bool) -> HiddenStates:
        """A place for states of `size` bytes in all, of a walk on `device`.

        resumable: a later attempt may take them up; only one walk at a time is.
        """
        where = self._choose(device, size) if self.where == "auto" else self.where
        if where == "device":
            return HeldStates(device)
        if where == "host":
            return HeldStates(torch.device("cpu"), pinned=device.type == "cuda")
        if self.folder is None:
            raise ValueError("hidden states in files need a folder for them")
        return FileStates(self.folder / CHANGES) if resumable else temporary(self.folder)

    def after(self, stamp: str | None) -> HiddenStates | None:
        """Those that a killed walk left after the block with this stamp, if it left them here."""
        if self.folder is None or stamp is None:
            return None
        return FileStates.after(self.folder / CHANGES, stamp)

    def _choose(self, device: torch.device, size: int) -> str:
        free = host = available_bytes()
        if device.type == "cuda":
            free = free_bytes(device)
        if free is None or size <= free // SHARE:
            return "device"
        if device.type != "cpu" and (host is None or size <= host // SHARE):
            return "host"
        return "file" if self.folder is not None else "device"


ON_DEVICE = StatesPlace()


def forget_walks(folder: Path) -> None:
    """Remove what walks of a process that was killed left in a folder of states."""
    for left in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def _stamp_file(folder: Path, number: int) -> Path:
    return folder / f"states-{number}.json"


def _end(entry: Entry) -> int:
    return entry.begin + prod(entry.shape) * entry.kind.itemsize


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data

"""The hidden states of a walk in two files.

While a block turns those in one into those in the other, the first stays whole, and a stamp beside
each says after which block it was written, so that a walk that was killed goes on from there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsemend.blocks.hidden_states import HiddenStates
from sparsemend.files import write_json

PREFIX = "walk-"  # of the folder of a walk that nobody takes up


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
        return self._read(self._entries[batch])

    def shape(self, batch: int) -> torch.Size:
        return torch.Size(self._entries[batch].shape)

    def tokens(self, batch: int, first: int, last: int) -> Tensor:
        entry = self._entries[batch]
        windows, length, width = entry.shape
        last = min(last, length)
        begins = [(window * length + first) * width for window in range(windows)]
        rows = [
            Entry(entry.begin + begin * entry.kind.itemsize, [last - first, width], entry.dtype)
            for begin in begins
        ]
        return torch.stack([self._read(row) for row in rows])

    def row(self, batch: int, row: int) -> Tensor:
        entry = self._entries[batch]
        size = _size(entry) // entry.shape[0]
        return self._read(Entry(entry.begin + row * size, entry.shape[1:], entry.dtype))

    def _read(self, entry: Entry) -> Tensor:
        tensor, path = torch.empty(entry.shape, dtype=entry.kind), self._file(self._current)
        with path.open("rb") as file:
            file.seek(entry.begin)
            if file.readinto(_bytes(tensor)) < _size(entry):
                raise ValueError(f"{path} was cut short while it was read; let it be")
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

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty_place(self) -> FileStates:
        return temporary(self.folder.parent)

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


def forget_walks(folder: Path) -> None:
    """Remove what walks of a process that was killed left in a folder of states."""
    for left in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def _stamp_file(folder: Path, number: int) -> Path:
    return folder / f"states-{number}.json"


def _end(entry: Entry) -> int:
    return entry.begin + _size(entry)


def _size(entry: Entry) -> int:
    return prod(entry.shape) * entry.kind.itemsize


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data

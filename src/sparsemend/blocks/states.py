"""Where the hidden states of a walk lie between two blocks, in memory or in files, by size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemend.blocks.device_memory import left_on
from sparsemend.blocks.file_states import FileStates, temporary
from sparsemend.blocks.hidden_states import HeldStates, HiddenStates

CHANGES = "changes"  # the folder of the states of a walk that changes blocks
SHARE = 4  # auto: of the memory that is free there, states take at most one part of so many


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
        if _holds(device, size):
            return "device"
        if device.type != "cpu" and _holds(torch.device("cpu"), size):
            return "host"
        return "file" if self.folder is not None else "device"


def _holds(device: torch.device, size: int) -> bool:
    free = left_on(device)
    return free is None or size <= free // SHARE


ON_DEVICE = StatesPlace()

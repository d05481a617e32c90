"""Check that a folder can be written before anything is, whose error would be Hydra's traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LEAST = 2**20  # of the files of Hydra, the log and result.json: far below 1 MiB


def check_place(folder: Path | None) -> None:
    """Raise OSError where the folder of a run or a sweep cannot be written, or its disk is full."""
    if folder is None:
        return
    existing = nearest_existing(folder)
    if not is_writable(existing):
        reason = "not writable" if existing.is_dir() else "no folder"
        raise PermissionError(
            f"the run cannot write {folder}: {existing} is {reason}; give hydra.run.dir, or "
            "hydra.sweep.dir of a sweep, a folder of yours"
        )
    free = shutil.disk_usage(existing).free
    if free < LEAST:
        raise OSError(
            f"the run cannot write {folder}: its disk has {free // 2**10} KiB free; make room, or "
            "give hydra.run.dir, or hydra.sweep.dir of a sweep, a folder on another disk"
        )


def nearest_existing(folder: Path) -> Path:
    """`folder`, or the first of the folders that it is to lie in which exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def is_writable(existing: Path) -> bool:
    """Whether a file can be made in an existing folder."""
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)

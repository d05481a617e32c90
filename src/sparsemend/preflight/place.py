"""Check that a folder can be written before anything is, whose error would be Hydra's traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.model import find_model
from sparsemend.config.export import packed_values, stored_dtype
from sparsemend.result.finished import resolve_from_run

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


def check_room(cfg: DictConfig, folder: Path | None) -> None:
    """Raise OSError where the disk of a run's folder has no room for the model that it exports.

    What files do not say passes: a model on the hub or of pickled weights, packed weights, and the
    first blocks of a model (debug).  One of a finished run (from_run) has its parameters.
    """
    if folder is None or not cfg.get("export") or cfg.get("debug") is not None:
        return
    cfg = resolve_from_run(cfg)
    parameters = find_model(cfg.model).parameters
    if parameters is None or packed_values(cfg) is not None:
        return
    dtype = stored_dtype(cfg)
    needed = parameters * (4 if dtype == "float32" else 2)
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise OSError(
            f"export=true writes {needed / 1e9:.3f} GB ({parameters:,} parameters in {dtype}) into "
            f"{folder}, and its disk has {free / 1e9:.3f} GB free; make room, give hydra.run.dir, "
            "or hydra.sweep.dir of a sweep, a folder on another disk, or leave export out"
        )


def nearest_existing(folder: Path) -> Path:
    """`folder`, or the first of the folders that it is to lie in which exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def is_writable(existing: Path) -> bool:
    """Whether a file can be made in an existing folder."""
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)

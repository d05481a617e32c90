"""Checkpoints are written straight to where they go.

Lightning would put each together in memory, write it into the system's folder for temporary files,
which may be small, and copy it from there: twice its bytes of memory, its bytes of that folder, and
a file there that nobody removes where the process is killed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from sparsemend.files import replacing


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with replacing(Path(path)) as partial:
            torch.save(checkpoint, partial)

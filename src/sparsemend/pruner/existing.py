"""An already pruned checkpoint: non-zero weights stay, zeros are off the support.

Zeros alone are a guess: a weight that was grown, or trained to exactly 0, is on the support and
looks as if it were not.  So a `masks.safetensors`, named or beside the model, takes precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sparsemend.blocks.statistics import Statistic
from sparsemend.names import MASKS
from sparsemend.pruner.base import Pruned, Pruner
from sparsemend.sparse.mask_file import load_masks
from sparsemend.sparse.pattern import Pattern


@dataclass(kw_only=True)
class Existing(Pruner):
    """Reads the support from a checkpoint and keeps its sparsity; a `pattern` must hold in it."""

    needs_calibration: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    reads_support: ClassVar[bool] = True

    masks: str | None

    def statistic(self, in_features: int, device: torch.device) -> None:
        """None: the inputs are not read."""
        return None

    def __call__(
        self, weight: Tensor, statistic: Statistic | None, sparsity: float, pattern: Pattern
    ) -> Pruned:
        """Keep every weight that is not zero."""
        return Pruned(weight, weight != 0)

    def supports(self, model_path: str | Path) -> Mapping[str, Tensor] | None:
        """Supports by saved name from the masks file, or None where there is no file.

        `model_path` is the checkpoint's folder, or a hub name, which has no such file beside it.
        Raises FileNotFoundError if the file that `masks` names does not exist.
        """
        if self.masks is not None:
            path = Path(self.masks).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"pruner.masks={self.masks} is not a file")
            return load_masks(path)
        path = Path(model_path) / MASKS
        return load_masks(path) if path.is_file() else None

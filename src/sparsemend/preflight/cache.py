"""Check that the cache folder can be written and has room for what a run or a sweep puts there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sparsemend.checkpoint.model import find_model
from sparsemend.checkpoint.prunable_shapes import prunable_shapes
from sparsemend.config.keys import keys_that
from sparsemend.preflight.place import is_writable, nearest_existing

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LEAST = 2**24  # measurements, locks and the study: far below 16 MiB
DECIDING = keys_that("decides_pruned_bits")


def check_cache(configs: Sequence[DictConfig]) -> None:
    """Raise OSError where the cache of these jobs cannot be written or would not fit.

    Models whose size is unknown here (on the hub) are not counted.
    """
    settings = configs[0].cache
    if settings.dir is None:
        return
    folder = Path(settings.dir)
    existing = nearest_existing(folder)
    if not is_writable(existing):
        raise PermissionError(
            f"cache.dir={folder} cannot be written ({existing} is "
            f"{'not writable' if existing.is_dir() else 'no folder'}); give cache.dir a folder of "
            "yours, or cache=off"
        )
    needed = LEAST + (sum(map(pruned_bytes, _distinct(configs))) if settings.models else 0)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"cache.dir={folder} has {free / 2**30:.2f} GiB free, the pruned models of this sweep "
            f"take {needed / 2**30:.2f} GiB; give cache.dir a larger disk, or cache.models=false "
            "(measurements only), or cache=off"
        )


def pruned_bytes(cfg: DictConfig) -> int:
    """Bytes of one pruned model in the cache: its kept weights and one bit per weight."""
    model = find_model(cfg.model)
    config = model.config.values if model.config is not None else {}
    weights = sum(map(math.prod, prunable_shapes(cfg, model.blocks or {}, config).values()))
    return int(weights * (BYTES.get(cfg.model.dtype, 4) * (1 - cfg.sparsity) + 1 / 8))


def _distinct(configs: Sequence[DictConfig]) -> list[DictConfig]:
    """One config per pruned model."""
    by_key = {str([_plain(cfg[key]) for key in DECIDING]): cfg for cfg in configs}
    numbers = (int, float)
    return [
        cfg for cfg in by_key.values() if isinstance(cfg.sparsity, numbers) and cfg.sparsity < 1
    ]


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if isinstance(value, DictConfig) else value

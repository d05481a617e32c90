"""Hold `prunable.include` and `prunable.exclude` against the names that safetensors headers say.

Where files do not say the modules' names, the loaded model is asked instead (`blocks/choice`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import linear_shapes
from sparsemend.checkpoint.prunable_shapes import module_names
from sparsemend.config.prunable import PrunableNames


def check_linear_names(
    cfg: DictConfig, blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError on a pattern that matches no linear of these headers, and if none is left.

    A file may leave out the first parts of the model's names.
    """
    names = list(linear_shapes(blocks, config))
    modules = module_names(names, config)
    if not modules:
        return
    prunable = PrunableNames.of(cfg)
    include = None if prunable.include is None else _without_prefix(prunable.include, names)
    exclude = _without_prefix(prunable.exclude, names)
    saved = {module: name for name, module in modules.items()}
    replace(prunable, include=include, exclude=exclude).check(saved)


def _without_prefix(patterns: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """The patterns without first parts that the files leave out of all names."""
    return tuple(next((p for p in _ends(pattern) if p in names), pattern) for pattern in patterns)


def _ends(pattern: str) -> list[str]:
    parts = pattern.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]

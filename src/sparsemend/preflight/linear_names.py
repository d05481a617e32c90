"""Hold `prunable.include` and `prunable.exclude` against the names that safetensors headers say.

Where files do not say the modules' names, a word that is nowhere in the text of the model's class
is refused, and the rest is asked of the loaded model (`blocks/choice`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import linear_shapes
from sparsemend.checkpoint.places import class_words
from sparsemend.checkpoint.prunable_shapes import module_names
from sparsemend.config.prunable import PrunableNames
from sparsemend.errors import nearest

WORD = re.compile(r"[A-Za-z_]\w*")
UNFOLDED = ("experts", "gate_proj", "up_proj", "down_proj")  # of experts that are taken apart


def check_linear_names(
    cfg: DictConfig, blocks: Mapping[str, TensorShape], config: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError on a pattern that matches no linear of these headers, and if none is left.

    A file may leave out the first parts of the model's names.
    """
    names = list(linear_shapes(blocks, config))
    modules, prunable = module_names(names, config), PrunableNames.of(cfg)
    if modules is None:
        _check_words(prunable, names, config or {})
    if not modules:
        return
    include = None if prunable.include is None else _without_prefix(prunable.include, names)
    exclude = _without_prefix(prunable.exclude, names)
    saved = {module: name for name, module in modules.items()}
    replace(prunable, include=include, exclude=exclude).check(saved)


def _check_words(prunable: PrunableNames, names: list[str], config: Mapping[str, Any]) -> None:
    """Raise ValueError on a pattern with a word that neither files nor the model's class have.

    names: saved ones, of linears with other names in memory.  A word with wildcards may be any.
    """
    in_class = class_words(config)
    if in_class is None:
        return
    words = {*UNFOLDED, *in_class, *(word for name in names for word in WORD.findall(name))}
    for key, pattern in prunable.patterns_without_match({name: name for name in names}):
        parts = [part.partition("[")[0] for part in pattern.split(".")]
        foreign = [part for part in parts if WORD.fullmatch(part) and part not in words]
        if foreign:
            inside = sorted({word for name in names for word in WORD.findall(name)})
            hint = nearest(foreign[0], [*inside, *UNFOLDED]).strip()
            raise ValueError(
                f"{key}={pattern} matches no linear of this model: {foreign[0]} is neither in the "
                f"names of its files nor in the class that loads them{'; ' * bool(hint)}{hint}"
            )


def _without_prefix(patterns: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """The patterns without first parts that the files leave out of all names."""
    return tuple(next((p for p in _ends(pattern) if p in names), pattern) for pattern in patterns)


def _ends(pattern: str) -> list[str]:
    parts = pattern.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]

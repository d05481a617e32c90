"""The files that a key of a data source names (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from filecmp import cmp
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import ListConfig


def paths(value: Any) -> list[Path]:
    """None, one path or a list of paths as a list."""
    if value is None:
        return []
    return [Path(str(item)) for item in (value if isinstance(value, ListConfig) else [value])]


def check_apart(key: str, files: Mapping[str, Sequence[Path]]) -> None:
    """Raise ValueError where a validation or test file has the bytes of one that a run learns from.

    files: those that exist, by the part of the data source `key` that names them.
    """
    for held, seen in product(("validation", "test"), ("train", "calibration")):
        for one, other in product(files.get(held, ()), files.get(seen, ())):
            if one.samefile(other) or cmp(one, other, shallow=False):
                raise ValueError(says_seen(f"{key}.{held}", str(one), f"{key}.{seen}={other}"))


def says_seen(key: str, place: str, seen: str) -> str:
    """The line for a validation or test set that a run learns from as `seen`, by key and value."""
    null = ", or null, which holds some out" if key.endswith(".validation") else ""
    return (
        f"{key}={place} is the same as {seen}, so it would measure what the model has seen; give "
        f"{key} another file{null}"
    )

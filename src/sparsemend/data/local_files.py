"""The files that a key of a data source names (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import ListConfig


def paths(value: Any) -> list[Path]:
    """None, one path or a list of paths as a list."""
    if value is None:
        return []
    return [Path(str(item)) for item in (value if isinstance(value, ListConfig) else [value])]

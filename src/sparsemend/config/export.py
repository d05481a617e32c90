"""In which form a run is to be exported (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PACKED = "packed"


def packed_values(config: Mapping[str, Any]) -> str | None:
    """The dtype in which a config has its sparse weights packed; None: the export is dense."""
    if config.get("export_form") != PACKED:
        return None
    return str(config.get("export_values") or stored_dtype(config))


def stored_dtype(config: Mapping[str, Any]) -> str:
    """The dtype of the weights of an export, of those that are not packed as int8."""
    return str(config.get("export_dtype") or config["model"]["dtype"])

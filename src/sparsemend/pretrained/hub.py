"""The folder of this machine that holds the safetensors of a hub id, downloaded where they are not.

They are the files that transformers itself would load, in the snapshot of the hub's cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import cached_files

SILENT: dict[str, Any] = {  # None in place of an error, which whoever loads the model words better
    f"_raise_exceptions_for_{what}": False
    for what in ("missing_entries", "gated_repo", "connection_errors")
}


def snapshot_of(place: str, revision: str | None) -> Path | None:
    """The snapshot of a hub id with all of its safetensors; None where it has none to be had."""
    if (single := cached_file(place, SAFE_WEIGHTS_NAME, revision=revision, **SILENT)) is not None:
        return Path(single).parent
    index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME, revision=revision, **SILENT)
    if index is None:
        return None
    shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    files = cached_files(place, shards, revision=revision, **SILENT)
    here = {Path(index).parent} == {Path(file).parent for file in files or ()}
    return Path(index).parent if here and len(files or ()) == len(shards) else None

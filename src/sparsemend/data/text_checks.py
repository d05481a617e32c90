"""Local files of text (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.config.locations import tilde_hint
from sparsemend.data.local_files import paths


def check(asked: Asked) -> None:
    """Raise FileNotFoundError on the first text file that is not there."""
    for part in ("train", "validation", "test"):
        for path in paths(asked.section[part]):
            if not path.exists():
                raise FileNotFoundError(
                    f"{asked.key}.{part}={path} does not exist; give a file{tilde_hint(str(path))}"
                )

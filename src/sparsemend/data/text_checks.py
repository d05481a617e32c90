"""Local files of text (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.config.locations import tilde_hint
from sparsemend.data.local_files import paths
from sparsemend.data.text_files import check_texts


def check(asked: Asked) -> None:
    """Raise FileNotFoundError or ValueError on the first text file that cannot be read."""
    for part in ("train", "calibration", "validation", "test"):
        files = asked.section[part]
        if files is not None and not paths(files):
            raise ValueError(
                f"{asked.key}.{part}=[] names no file; give one"
                + ", or null" * (part in ("calibration", "validation"))
            )
        for path in paths(files):
            if not path.exists():
                raise FileNotFoundError(
                    f"{asked.key}.{part}={path} does not exist; give a file{tilde_hint(str(path))}"
                )
            check_texts(f"{asked.key}.{part}", path, column=asked.section.column)

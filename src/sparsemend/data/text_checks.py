"""Local files of text (no torch)."""

from __future__ import annotations

from sparsemend.config.asked import Asked
from sparsemend.config.locations import tilde_hint
from sparsemend.data.local_files import check_apart, paths
from sparsemend.data.text_files import check_texts


def check(asked: Asked) -> None:
    """Raise FileNotFoundError or ValueError on a text that cannot be read, or held out and seen."""
    files = {p: paths(asked.section[p]) for p in ("train", "calibration", "validation", "test")}
    for part, places in files.items():
        if asked.section[part] is not None and not places:
            raise ValueError(
                f"{asked.key}.{part}=[] names no file; give one"
                + ", or null" * (part in ("calibration", "validation"))
            )
        for path in places:
            if not path.exists():
                raise FileNotFoundError(
                    f"{asked.key}.{part}={path} does not exist; give a file{tilde_hint(str(path))}"
                )
            check_texts(f"{asked.key}.{part}", path, column=asked.section.column)
    check_apart(asked.key, files)

"""An interruption of this process from within, at the same place on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch


@contextmanager
def interrupted_after(pattern: str) -> Iterator[None]:
    """Inside, KeyboardInterrupt comes as soon as the first file of `pattern` is in its place."""
    replace = Path.replace

    def watched(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).match(pattern):
            raise KeyboardInterrupt

    with patch.object(Path, "replace", watched):
        yield

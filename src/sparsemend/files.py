"""Files that are whole or absent: written beside their place, then moved onto it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        give_usual_mode(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def give_usual_mode(path: Path) -> None:
    """Give a file, or every file in a folder, the permissions of a file opened for writing.

    safetensors 0.8 writes files that only their owner may read, whatever the umask is.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Write `text`, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

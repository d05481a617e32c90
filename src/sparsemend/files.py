"""Files that are whole or absent: written beside their place, then moved onto it."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # ends the name of what is being written, after the number of the process


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block ends without an error.

    It lies in a folder of its own beside `path`, since safetensors writes into a file of another
    name first, which a kill leaves; its own name is none that anybody looks for.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        partial = folder / f"{path.name}{PARTIAL}"
        yield partial
        give_usual_mode(partial)
        partial.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which takes its place when the block ends without an error."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        _forget(left)
    pid = os.getpid()
    partial, before = (path.with_name(f".{path.name}.{w}{pid}{PARTIAL}") for w in ("", "before."))
    partial.mkdir(parents=True)
    try:
        yield partial
        give_usual_mode(partial)
        if path.exists():
            path.rename(before)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def forget_partials(folder: Path) -> None:
    """Remove what processes that have ended were writing under `folder`."""
    for partial in list(folder.rglob(f".*{PARTIAL}")):
        _forget(partial)


def _forget(partial: Path) -> None:
    pid = partial.name.removesuffix(PARTIAL).rpartition(".")[2]
    if not pid.isdigit() or _runs(int(pid)):
        return
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:  # the probe of a mode
        partial.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process of this number runs here."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def give_usual_mode(path: Path) -> None:
    """Give a file, or every file in a folder, the permissions of a file opened for writing.

    safetensors 0.8 writes files that only their owner may read, whatever the umask is.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
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


def user_cache() -> Path:
    """$SPARSEMEND_CACHE, else $XDG_CACHE_HOME/sparsemend, else ~/.cache/sparsemend."""
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SPARSEMEND_CACHE") or f"{general}/sparsemend").expanduser()

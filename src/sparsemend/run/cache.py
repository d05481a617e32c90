"""A folder of results that are computed once, whichever job asks and however a process ends.

An entry is a folder `<kind>/<key>/`: content.json and, if it has any, tensors.safetensors.  The key
is a hash of everything that decides the content.  Writers fill a temporary folder and rename it,
under a lock that the system drops with its process, so that a reader sees a whole entry or none:
one job computes and the others wait; the next writer removes what a killed one left; content whose
checksum is wrong is computed again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsemend.config.values import digest
from sparsemend.files import file_digest, give_usual_mode

log = logging.getLogger(__name__)

FORMAT = "sparsemend-cache-1"
CONTENT, TENSORS = "content.json", "tensors.safetensors"


@dataclass(frozen=True)
class Content:
    """The content of an entry: JSON values and tensors."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheEntry:
    """The content of an entry, whether it was there already, and the job and time that made it."""

    content: Content
    hit: bool
    key: str
    seconds: float  # of the job that computed it
    made_by: str  # its run folder

    def origin(self) -> dict[str, Any]:
        """The facts for result.json."""
        return {
            "hit": self.hit,
            "key": self.key,
            "seconds": round(self.seconds, 3),
            "made_by": self.made_by,
        }


class Cache:
    """Entries under one folder."""

    def __init__(self, folder: Path, *, owner: Path) -> None:
        """owner: the run folder to name in the entries that this process computes."""
        self.folder, self.owner = folder, owner

    def once(
        self, kind: str, parts: Mapping[str, Any], compute: Callable[[], Content]
    ) -> CacheEntry:
        """The entry of `parts`: read if it is there, awaited from another job, or computed here."""
        key = digest({"format": FORMAT, **parts})
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self._lock(kind, key))
            except OSError as error:  # a full disk, a folder that is read-only
                log.warning("nothing is shared through %s: %s", self.folder, error)
                return self._compute(key, compute)
            entry = _read(folder, key)
            if entry is not None:
                return entry
            made = self._compute(key, compute)
            self._write(folder, made, parts)
            return made

    def _compute(self, key: str, compute: Callable[[], Content]) -> CacheEntry:
        started = perf_counter()
        content = compute()
        return CacheEntry(content, False, key, perf_counter() - started, str(self.owner))

    @contextmanager
    def _lock(self, kind: str, key: str) -> Iterator[Path]:
        parent = self.folder / kind
        parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parent / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s %s: another job is computing it, waiting", kind, key[:12])
            lock.acquire()
        try:
            for left in parent.glob(f".{key}.*"):
                shutil.rmtree(left, ignore_errors=True)  # of a killed writer: we hold its lock
            yield parent / key
        finally:
            lock.release()

    def _write(self, folder: Path, made: CacheEntry, parts: Mapping[str, Any]) -> None:
        """Write an entry; a cache that cannot be written costs time, not the run."""
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            partial.mkdir()
            tensors = {name: t.cpu().contiguous() for name, t in made.content.tensors.items()}
            if tensors:
                save_file(tensors, partial / TENSORS)
            values = dict(made.content.values)
            facts = {
                "format": FORMAT,
                "key": made.key,
                "parts": parts,
                "values": values,
                "values_sha256": digest(values),
                "tensors_sha256": file_digest(partial / TENSORS) if tensors else None,
                "seconds": made.seconds,
                "made_by": made.made_by,
            }
            (partial / CONTENT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
            give_usual_mode(partial)  # other users may share the folder
            partial.replace(folder)
        except (OSError, SafetensorError) as error:
            log.warning("not cached in %s: %s", folder, error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path, key: str) -> CacheEntry | None:
    """The entry if it is whole; a broken one is removed."""
    if not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
        tensors = folder / TENSORS
        stored = file_digest(tensors) if facts["tensors_sha256"] else None
        if facts["values_sha256"] == digest(facts["values"]) and stored == facts["tensors_sha256"]:
            content = Content(facts["values"], load_file(tensors) if stored else {})
            return CacheEntry(content, True, key, facts["seconds"], facts["made_by"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("cache entry %s cannot be read: %s", folder, error)
    log.warning("cache entry %s is broken, computing it again", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None

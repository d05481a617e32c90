"""The memory that this process may still take, and what it has freed, on Linux."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
# limit and use of a group, and the share of the use that is given back as soon as it is asked for
SECOND = ("memory.max", "memory.current", "inactive_file")
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes() -> int | None:
    """What the machine and the control groups of this process leave it; None: nothing tells."""
    left = [*_machine(), *_groups()]
    return min(left) if left else None


def return_freed() -> None:
    """Return freed memory to the system, where the C library has a call for it (glibc).

    It keeps pieces of up to 32 MB that were freed between others that live, in pools of each
    thread: 1 GB after a walk over 16 blocks of 100 MB, of which nothing was in use.
    """
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no library under this name: Windows
        return None


def _machine() -> Iterator[int]:
    for line in _lines(MEMINFO):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups() -> Iterator[int]:
    """What the limit of each control group of this process leaves, in both versions of these."""
    for line in _lines(OWN_GROUPS):
        number, kinds, path = line.split(":", 2)
        if number == "0":
            yield from _above(GROUPS / path.strip("/"), GROUPS, SECOND)
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            yield from _above(root / path.strip("/"), root, FIRST)


def _above(group: Path, root: Path, names: tuple[str, str, str]) -> Iterator[int]:
    """What a group and those above it leave; one that a container does not show is passed over."""
    while group.is_relative_to(root):
        limit, used = _number(group / names[0]), _number(group / names[1])
        if limit is not None and used is not None:
            cached = [line.split()[1] for line in _lines(group / "memory.stat") if _is(line, names)]
            yield max(0, limit - used + sum(map(int, cached)))
        group = group.parent


def _is(line: str, names: tuple[str, str, str]) -> bool:
    return line.startswith(f"{names[2]} ")


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

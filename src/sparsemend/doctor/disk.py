"""What a run writes, against the room on its disk (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

from sparsemend.doctor.verdict import Capacity, Finding, Verdict

LARGEST = 3  # files that the line names


def disk_finding(files: Mapping[str, int], capacity: Capacity) -> Finding:
    """Whether the files of one run fit; each once, and the largest once more while it is written.

    A file is written whole beside its place and moved onto it.
    """
    total = sum(files.values()) + max(files.values(), default=0)
    parts = sorted(files.items(), key=lambda item: -item[1])[:LARGEST]
    named = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts)
    says = f"{total / 1e9:.2f} GB to write ({named})"
    if capacity.disk is None:
        return Finding("disk", Verdict.UNKNOWN, f"{says}; the free room is not known")
    says += f", {capacity.disk / 1e9:.1f} GB free"
    if total <= capacity.disk:
        return Finding("disk", Verdict.GO, says)
    return Finding(
        "disk",
        Verdict.NO_GO,
        says,
        "make room, or set hydra.run.dir on another disk; cache=off keeps no finished stage",
    )

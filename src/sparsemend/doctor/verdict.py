"""Go, no-go or unknown, and what makes it so (no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

# beside what is alive: pieces that an allocator cannot use, workspaces of kernels, CUDA's context
DEVICE_SHARE, DEVICE_BYTES = 0.08, 6e8
# A process that has imported what a run needs holds 0.49 GB, and what the C library keeps of freed
# pieces was 0.54 GB more than is counted (malloc_trim gave it back); the rest is the largest
# difference of a measured run.
HOST_SHARE, HOST_BYTES = 0.15, 1e9


class Verdict(Enum):
    """What the doctor says of a run, or of one of its needs."""

    GO = "go"
    NO_GO = "no-go"
    UNKNOWN = "unknown"

    @property
    def exit_code(self) -> int:
        return {Verdict.GO: 0, Verdict.NO_GO: 1, Verdict.UNKNOWN: 2}[self]

    @staticmethod
    def of_all(verdicts: Iterable[Verdict]) -> Verdict:
        """No-go where one is; unknown where none is, but one unknown."""
        seen = set(verdicts)
        for verdict in (Verdict.NO_GO, Verdict.UNKNOWN):
            if verdict in seen:
                return verdict
        return Verdict.GO


@dataclass(frozen=True)
class Capacity:
    """Bytes that a run may take here; None where nobody knows."""

    host: int | None
    device: int | None
    disk: int | None
    device_name: str


@dataclass(frozen=True)
class Need:
    """The peak of a stage on a device, `host` or `device`, in bytes, with the line that sets it."""

    stage: str
    device: str
    bytes: int
    line: str
    there: int | None

    @property
    def with_margin(self) -> float:
        """The bytes to have for it: what an allocator takes besides is an experience."""
        if self.device == "device":
            return self.bytes * (1 + DEVICE_SHARE) + DEVICE_BYTES
        return self.bytes * (1 + HOST_SHARE) + HOST_BYTES

    @property
    def verdict(self) -> Verdict:
        if self.there is None:
            return Verdict.UNKNOWN
        return Verdict.GO if self.with_margin <= self.there else Verdict.NO_GO


@dataclass(frozen=True)
class Finding:
    """One fact about the surroundings, with what to do about it where it is no go."""

    what: str
    verdict: Verdict
    says: str
    remedy: str = ""

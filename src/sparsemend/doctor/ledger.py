"""The bytes alive on each device, with the peak that every line of this package reaches.

A peak is kept by stage, device and line: what a line holds at most is linear in the number of
decoder blocks, as a rule, while the peak of a stage, the largest of these, need not be.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, UntypedStorage

from sparsemend.config.locations import PACKAGE
from sparsemend.doctor.peaks import Moment

# Up to this size the C library takes memory from its heap, which it does not give back while
# something lies above it (glibc, mallopt(3), the largest M_MMAP_THRESHOLD by itself).
HEAP = 2**25


@dataclass(frozen=True)
class Rise:
    """Bytes alive above what was alive before, and how many of them the heap holds."""

    live: int
    small: int


Rises = dict[tuple[str, str], Rise]  # by (device, line), where it holds most
OURS, DOCTOR = str(PACKAGE) + "/", str(Path(__file__).parent) + "/"


@dataclass
class Ledger:
    """A storage counts from the operator that returns it until it is freed, whoever holds it."""

    stage: str = ""
    live: dict[str, int] = field(default_factory=dict)
    small: int = 0  # of `live` on the host, what the heap holds
    heap: int = 0  # the largest that `small` has been in this stage
    peaks: dict[Moment, int] = field(default_factory=dict)
    paused: bool = False
    _alive: dict[int, weakref.ref[UntypedStorage]] = field(default_factory=dict)
    _line: str = ""
    _recording: dict[tuple[str, str], tuple[int, Rise]] | None = None  # with what is held then

    @contextmanager
    def recording(self) -> Iterator[Rises]:
        """Record by how much each line rises above what is alive now."""
        start, small, self._recording = dict(self.live), self.small, {}
        recorded, rises = self._recording, Rises()
        try:
            yield rises
        finally:
            self._recording = None
            for (device, line), (_, reached) in recorded.items():
                above = reached.live - start.get(device, 0)
                rises[device, line] = Rise(above, reached.small - small)

    def repeat(self, rises: Rises) -> None:
        """Reach again, above what is alive now, what was recorded."""
        for (device, line), rise in rises.items():
            small = self.small + rise.small
            unused = max(0, self.heap - small) if device == "cpu" else 0
            held = self.live.get(device, 0) + rise.live + unused
            self._enter(Moment(self.stage, device, line), held)

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Count what is reached inside as of `stage`."""
        before = self.stage
        self.begin(stage)
        try:
            for device in self.live:
                self._reach(device, 0)
            yield
        finally:
            self.stage = before

    def begin(self, stage: str) -> None:
        """Count what follows as of `stage`, before which a run returns what it freed."""
        self.stage, self.heap = stage, self.small

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count nothing that is made inside, unless it is noted later."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def note(self, tensor: Tensor) -> None:
        """Count the storage of `tensor`, if it is new, on the device that the tensor says."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if self.paused or key in self._alive or not size:
            return
        device = tensor.device.type
        if device == "meta":
            return

        in_heap = size if device == "cpu" and size < HEAP else 0

        def on_free(reference: weakref.ref[UntypedStorage]) -> None:
            del self._alive[key]
            self.live[device] -= size
            self.small -= in_heap

        self._alive[key] = weakref.ref(storage, on_free)
        self.live[device] = self.live.get(device, 0) + size
        self.small += in_heap
        self.heap = max(self.heap, self.small)
        self._reach(device, 0)

    def held_bytes(self, device: str) -> int:
        """The bytes that the process holds for what is alive."""
        unused = self.heap - self.small if device == "cpu" else 0
        return self.live.get(device, 0) + unused

    def scratch(self, device: str, size: int) -> None:
        """Count bytes that a kernel holds while it runs."""
        self._reach(device, size)

    def _reach(self, device: str, beyond: int) -> None:
        moment = Moment(self.stage, device, self._place())
        size = self.held_bytes(device) + beyond
        self._enter(moment, size)
        if self._recording is not None:
            key = device, moment.line
            if size > self._recording.get(key, (-1, None))[0]:
                alive = self.live.get(device, 0) + beyond
                self._recording[key] = size, Rise(alive, self.small)

    def _enter(self, moment: Moment, size: int) -> None:
        if size > self.peaks.get(moment, -1):
            self.peaks[moment] = size

    def _place(self) -> str:
        """The innermost line of this package under which the operator runs, `path:line`.

        Autograd may run a backward in a thread of its own, which has no line: then the last one.
        """
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code.co_filename
            if code.startswith(OURS) and not code.startswith(DOCTOR):
                self._line = f"{code.removeprefix(OURS)}:{frame.f_lineno}"
                break
            frame = frame.f_back  # type: ignore[assignment]
        return self._line

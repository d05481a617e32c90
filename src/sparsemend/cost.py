"""Seconds and peak memory of the stages of a run."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from sparsemend.errors import (
    brief,
    full_disk,
    lacks_determinism,
    lacks_disk,
    lacks_memory,
    lacks_operator,
)

# what lowers the peak of a stage; a stage without an entry has nothing to lower it
LOWER = {
    "load": "model.dtype=bfloat16 halves the weights, hardware.offload=true keeps them on the "
    "host, hardware.stream=true leaves them in their files",
    "evaluate": "hardware.evaluation_batch=1, or a lower evaluation.perplexity.logits_bytes",
    "prune": "hardware.offload=true, hardware.states=file, or fewer data.calibration_samples",
    "repair": "hardware.micro_batch=1, hardware.activation_checkpointing=true where the method "
    "trains, or hardware.offload=true",
}

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


@dataclass
class Cost:
    """Seconds and peak bytes of one stage; repeated use adds seconds and keeps the larger peak.

    parts: the same of its uses under a name each, such as the states that were measured.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    parts: dict[str, Cost] = field(default_factory=dict)

    def add(self, seconds: float, peak_bytes: int) -> None:
        self.seconds += seconds
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


@dataclass
class Stages:
    """Measures named stages.

    peak_scope says what `peak_bytes` is: `stage` (resident peak, reset as each stage begins),
    `process` (resident peak since the process began, where the system has no reset) or `cuda`
    (peak of torch's allocator, reset per stage).  settle: called before each stage, so that what
    earlier ones freed does not count in its peak.
    """

    device: torch.device
    costs: dict[str, Cost] = field(default_factory=dict)
    peak_scope: str = "stage"
    settle: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            self.peak_scope = "cuda"
        elif not _reset_resident_peak():
            self.peak_scope = "process"

    @contextmanager
    def measure(self, name: str, part: str | None = None) -> Iterator[None]:
        """Measure the block as part of stage `name`, and by itself as its `part`.

        Raises MemoryError or OSError of one line where memory or the disk ran out inside, and
        ValueError where an operator cannot be deterministic, or is none of the device's.
        """
        if self.settle is not None:
            self.settle()
        self._reset()
        started = perf_counter()
        try:
            yield
        except Exception as error:
            if lacks_memory(error):
                raise MemoryError(self._memory_line(name, error)) from error
            if lacks_disk(error):
                raise full_disk(name, error) from error
            if lacks_operator(error):
                raise ValueError(
                    f"{name}: {str(error).partition('. ')[0]}; set PYTORCH_ENABLE_MPS_FALLBACK=1 "
                    "in the environment, which computes it on the CPU, or hardware=cpu"
                ) from error
            if lacks_determinism(error):
                raise ValueError(
                    f"{name}: {brief(error)}; set hardware.deterministic=false, after which "
                    "resumed and repeated runs may differ in their last bits"
                ) from error
            raise
        finally:
            cost = self.costs.setdefault(name, Cost())
            seconds, peak = perf_counter() - started, self._peak()
            cost.add(seconds, peak)
            if part is not None:
                cost.parts.setdefault(part, Cost()).add(seconds, peak)

    def _memory_line(self, name: str, error: Exception) -> str:
        """Where memory ran out, the peak by then, and what lowers it."""
        peak = f"{self._peak() / 2**20:,.0f} MiB ({self.peak_scope})"
        lower = LOWER.get(name, "give it more memory")
        return f"{name}: out of memory on {self.device} after {peak}: {brief(error)}; try {lower}"

    def _reset(self) -> None:
        if self.peak_scope == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.peak_scope == "stage":
            _reset_resident_peak()

    def _peak(self) -> int:
        if self.peak_scope == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        if self.peak_scope == "stage":
            return _resident_peak()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_resident_peak() -> bool:
    """Reset VmHWM to the current resident size (Linux); False where that is not allowed."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _resident_peak() -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0

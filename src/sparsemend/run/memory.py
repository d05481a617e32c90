"""Keep what one job of a process computed for the process's next job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

from sparsemend.config.values import digest

_LAST: dict[str, tuple[str, Any]] = {}  # kind -> (key, value) of this process's last job


@dataclass(frozen=True)
class Memory:
    """One value per kind, that of the last job; `origins` records what this job reused.

    enabled: otherwise nothing is kept, and nothing recorded.
    """

    enabled: bool
    origins: dict[str, Any] = field(default_factory=dict)

    def once(self, kind: str, parts: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """compute(), or what the last job computed from the same parts.

        parts: everything that decides the value, as JSON values.
        """
        if not self.enabled:
            return compute()
        key = digest(parts)
        last = _LAST.get(kind)
        hit = last is not None and last[0] == key
        started, worked = perf_counter(), process_time()
        if not hit:
            _LAST.pop(kind, None)  # first: two of a kind may not fit
            _LAST[kind] = key, compute()
        self.origins[kind] = {
            "hit": hit,
            "seconds": round(perf_counter() - started, 3),
            "processor_seconds": round(process_time() - worked, 3),
        }
        return _LAST[kind][1]

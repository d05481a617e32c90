"""The content of a result.json as one object, from a file of this version or an earlier one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from sparsemend.result.sections import (
    CacheUse,
    Conditions,
    Json,
    MeasuredRun,
    ProcessId,
    Provenance,
    Repair,
    RunError,
    SparsityCounts,
    StageCost,
    costs_from_json,
    costs_to_json,
)

SCHEMA = "sparsemend-result-1"
FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run: what it was, what it measured, what it cost.

    metrics: state (dense, pruned, repaired) -> metric -> value, None where it was not finite.
    earlier_attempts: the costs of the attempts that this run continued, oldest first.
    seconds and processor_seconds: of the whole job, None before its end.
    """

    status: str  # running, finished, failed or interrupted
    config: Json
    config_hash: str = ""
    process: ProcessId = field(default_factory=ProcessId)
    provenance: Provenance = field(default_factory=Provenance)
    protocol: Conditions = field(default_factory=Conditions)
    sparsity: SparsityCounts = field(default_factory=SparsityCounts)
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    cost: Mapping[str, StageCost] = field(default_factory=dict)
    earlier_attempts: tuple[Mapping[str, StageCost], ...] = ()
    repair: Repair = field(default_factory=Repair)
    error: RunError | None = None
    peak_scope: str | None = None  # stage, process or cuda; None before a stage was measured
    cache: CacheUse = field(default_factory=CacheUse)
    curves: Mapping[str, Any] = field(default_factory=dict)  # name -> [[step, value], ...]
    from_run: MeasuredRun | None = None
    seconds: float | None = None
    processor_seconds: float | None = None

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def attempts(self) -> list[Mapping[str, StageCost]]:
        """The costs by stage of every attempt, the last one last: a resumed run had several."""
        return [*self.earlier_attempts, self.cost]

    def metric(self, state: str, name: str) -> float | None:
        """A metric of one state; None where it was not measured or was not finite."""
        number = self.metrics.get(state, {}).get(name)
        return None if number is None else float(number)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The result that a file holds; raises ValueError where it is not the file of a run."""
        if not isinstance(content, Mapping) or not {"status", "config"} <= content.keys():
            raise ValueError("it has no status and config of a run; give a result.json")
        for name in ("config", "metrics", "curves"):
            if not isinstance(content.get(name, {}), Mapping):
                raise ValueError(f"its {name} is {content[name]!r}, not an object by name")
        error, again = content.get("error"), content.get("from_run")
        typed: Json = {
            "process": ProcessId.from_json(content.get("process", {})),
            "provenance": Provenance.from_json(content.get("provenance", {})),
            "protocol": Conditions.from_json(content.get("protocol", {})),
            "sparsity": SparsityCounts.from_json(content.get("sparsity", {})),
            "cost": costs_from_json(content.get("cost", {})),
            "earlier_attempts": tuple(map(costs_from_json, content.get("earlier_attempts", []))),
            "repair": Repair.from_json(content.get("repair", {})),
            "error": RunError.from_json(error) if error else None,
            "cache": CacheUse.from_json(content.get("cache", {})),
            "from_run": MeasuredRun.from_json(again) if again else None,
        }
        plain = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        return cls(**plain | typed)

    def to_json(self) -> Json:
        """The result as a file holds it."""
        content: Json = {
            "schema": SCHEMA,
            "status": self.status,
            "config": self.config,
            "config_hash": self.config_hash,
            "process": self.process.to_json(),
            "provenance": self.provenance.to_json(),
            "protocol": self.protocol.to_json(),
            "sparsity": self.sparsity.to_json(),
            "metrics": {state: dict(values) for state, values in self.metrics.items()},
            "cost": costs_to_json(self.cost),
            "earlier_attempts": [costs_to_json(costs) for costs in self.earlier_attempts],
            "repair": self.repair.to_json(),
            "error": self.error.to_json() if self.error else None,
        }
        later = {
            "peak_scope": self.peak_scope,
            "cache": self.cache.to_json(),
            "curves": dict(self.curves),
            "from_run": self.from_run.to_json() if self.from_run else None,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
        }
        return content | {key: value for key, value in later.items() if value not in (None, {})}


def finite(value: Any) -> Any:
    """`value` with None for every number that is not finite, since JSON has no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value

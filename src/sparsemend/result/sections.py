"""The sections of a result.json, a dataclass each; `run_result.RunResult` holds them.

`from_json` reads files of this version and of earlier ones: a key that an earlier version did not
write has the value that its field has here by default, and keys of later versions are passed over.
`to_json` gives what `schema.json` describes; what is not there yet, None or empty, is left out,
unless that itself says something (ALWAYS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

Json = dict[str, Any]


@dataclass(frozen=True)
class ResultSection:
    """A section of a result.json: its fields are the keys of the file."""

    ALWAYS: ClassVar[tuple[str, ...]] = ()  # written even if None or empty
    OTHERS: ClassVar[str | None] = None  # the field whose entries are keys of the section too

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The section that a file holds."""
        names = {entry.name for entry in fields(cls)} - {cls.OTHERS}
        facts = {name: content[name] for name in names if name in content}
        if cls.OTHERS is not None:
            facts[cls.OTHERS] = {k: v for k, v in content.items() if k not in names}
        return cls(**facts)

    def to_json(self) -> Json:
        """The section as a file holds it, empty where the run did not reach it."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        content = {k: v for k, v in values.items() if v not in (None, {}) or k in self.ALWAYS}
        return content | content.pop(self.OTHERS or "", {})


@dataclass(frozen=True)
class ProcessId(ResultSection):
    """The process that wrote the file.

    job, start: the cluster's number for the job that it belongs to, and how often the cluster had
    started that job anew; None outside one.
    """

    host: str = ""
    pid: int = -1
    job: str | None = None
    start: int | None = None


@dataclass(frozen=True)
class Provenance(ResultSection):
    """Sources, packages and machine.  commit and dirty are None outside a git checkout."""

    commit: str | None = None
    dirty: bool | None = None
    packages: Mapping[str, str | None] = field(default_factory=dict)
    python: str = ""
    platform: str = ""
    device: str | None = None  # cpu, or the name of the accelerator
    threads: int | None = None  # of torch: equal numbers give equal bits

    ALWAYS: ClassVar = ("commit", "dirty", "packages")

    @property
    def machine(self) -> tuple[str | None, int | None]:
        """Device and threads, by which speeds are comparable."""
        return self.device, self.threads


@dataclass(frozen=True)
class Conditions(ResultSection):
    """The facts beside the model that the measurements depend on.

    described: evaluation -> what it says of itself; a key of its own each in the file.
    stored_as: the types of the tensors of a model that was quantised and turned back into numbers.
    """

    corpus: str = ""  # empty before the data is loaded
    split: str = "test"
    tokens: int = 0
    windows: int = 0
    seqlen: int = 0
    dtype: str = ""
    stored_as: str | None = None
    data_hash: str | None = None
    bos: bool = False  # whether every window begins with the tokenizer's BOS token
    chat_template: bool = False  # whether examples were turns of the tokenizer's chat template
    calibration_samples: int | None = None
    calibration_from: str = "text"  # or train: calibration windows over the training examples
    attention: str | None = None
    statistics: str = "exact"
    true_sequential: bool = False
    described: Mapping[str, Any] = field(default_factory=dict)

    OTHERS: ClassVar = "described"

    @property
    def text(self) -> tuple[object, ...]:
        """The facts that two runs must agree in for their metrics to stand in one result."""
        return (
            *(self.corpus, self.split, self.tokens, self.windows, self.seqlen),
            *(self.dtype, self.data_hash),
        )

    def to_json(self) -> Json:
        return super().to_json() if self.corpus else {}


@dataclass(frozen=True)
class LinearSparsity(ResultSection):
    """Zeros of one linear as a fraction: what was asked, and what there is."""

    asked: float
    achieved: float


@dataclass(frozen=True)
class SparsityCounts(ResultSection):
    """Zeros as fractions in [0, 1].  Until the export is made, the rates by block are all there is.

    effective: of what the forward pass multiplies by; a version without it had no open adapters.
    scores: measured by a schedule, by block or linear; None where one was not finite.
    excluded: the linears that prunable.include and exclude left dense; None of a version without.
    stays_dense: linears without a support, with the reason.
    """

    target: float | None = None
    pattern: str | None = None
    achieved: float | None = None
    effective: float | None = None
    achieved_of_all_parameters: float | None = None
    prunable_weights: int | None = None
    zeros: int | None = None
    per_block: Mapping[str, float] = field(default_factory=dict)
    asked_per_block: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    per_linear: Mapping[str, LinearSparsity] = field(default_factory=dict)
    excluded: Sequence[str] | None = None
    stays_dense: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        linears = content.get("per_linear", {}).items()
        per_linear = {name: LinearSparsity.from_json(rates) for name, rates in linears}
        return super().from_json({**content, "per_linear": per_linear})

    def to_json(self) -> Json:
        content = super().to_json()
        if self.per_linear:
            content["per_linear"] = {n: rates.to_json() for n, rates in self.per_linear.items()}
        return content


@dataclass(frozen=True)
class StageCost(ResultSection):
    """Wall seconds and peak bytes of one stage; trained_parameters of the repair alone.

    by_state: seconds and peak bytes of measuring each state; None of other stages.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    trained_parameters: int | None = None
    by_state: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Repair(ResultSection):
    """What a method reports.

    foldable: whether it ends in one sparse matrix per linear; None of a version that had no other.
    diagnostics: the method's own, a key of its own each in the file.
    """

    foldable: bool | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    OTHERS: ClassVar = "diagnostics"


@dataclass(frozen=True)
class Reused(ResultSection):
    """A result of the keyed cache: whether it was there, its key, and the job that computed it."""

    hit: bool
    key: str
    seconds: float  # that computing it took, in the job made_by
    made_by: str  # run folder


@dataclass(frozen=True)
class Remembered(ResultSection):
    """A part of this job that the process's next job may reuse: reused, or the time it took."""

    hit: bool
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class CacheUse(ResultSection):
    """What a run took from caches or put there.

    scores: what its schedule measured.  metrics: by state and evaluation.
    """

    pruned: Reused | None = None
    scores: Reused | None = None
    memory: Mapping[str, Remembered] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Reused]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        memory = content.get("memory", {}).items()
        return cls(
            Reused.from_json(content["pruned"]) if content.get("pruned") else None,
            Reused.from_json(content["scores"]) if content.get("scores") else None,
            {part: Remembered.from_json(times) for part, times in memory},
            {
                state: {name: Reused.from_json(origin) for name, origin in by_name.items()}
                for state, by_name in content.get("metrics", {}).items()
            },
        )

    def to_json(self) -> Json:
        content: Json = {"pruned": self.pruned.to_json()} if self.pruned else {}
        if self.scores:
            content["scores"] = self.scores.to_json()
        if self.memory:
            content["memory"] = {part: times.to_json() for part, times in self.memory.items()}
        if self.metrics:
            content["metrics"] = {
                state: {name: origin.to_json() for name, origin in by_name.items()}
                for state, by_name in self.metrics.items()
            }
        return content


@dataclass(frozen=True)
class MeasuredRun(ResultSection):
    """The finished run that was measured again (from_run)."""

    folder: str
    config_hash: str
    commit: str | None = None

    ALWAYS: ClassVar = ("commit",)


@dataclass(frozen=True)
class RunError(ResultSection):
    """Why a run ended early."""

    type: str
    message: str
    traceback: str


def costs_from_json(content: Mapping[str, Any]) -> dict[str, StageCost]:
    """Stage -> its cost."""
    return {stage: StageCost.from_json(spent) for stage, spent in content.items()}


def costs_to_json(costs: Mapping[str, StageCost]) -> Json:
    """The inverse of `costs_from_json`."""
    return {stage: spent.to_json() for stage, spent in costs.items()}

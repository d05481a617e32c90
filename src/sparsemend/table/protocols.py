"""Which runs may share a table: numbers of two protocols never share a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from sparsemend.errors import nearest
from sparsemend.result.protocol import Protocol
from sparsemend.result.runs import RunRecord


def check_metric(runs: Sequence[RunRecord], metric: str) -> None:
    """Raise ValueError, naming the metrics that there are, where no run has this one."""
    metrics = sorted({name for run in runs for s in run.result.metrics.values() for name in s})
    if metric not in metrics:
        raise ValueError(
            f"no run measured {metric!r}\n{nearest(metric, metrics, alike=0.5)}measured: "
            f"{', '.join(metrics) or 'nothing'}; choose one with --metric"
        )


def with_metric(runs: Sequence[RunRecord], metric: str) -> list[RunRecord]:
    """The runs that measured the metric in some state."""
    return [run for run in runs if any(metric in s for s in run.result.metrics.values())]


def protocols(runs: Sequence[RunRecord], metric: str) -> dict[str, Protocol]:
    """The protocol of every model; raises ValueError naming two that must not share a table.

    Runs of one model agree in the whole protocol.  Models may differ in dtype and, as their
    tokenizers do, in the number of tokens: each model has a column of its own.
    """
    by_model: dict[str, tuple[Protocol, RunRecord]] = {}
    for run in runs:
        protocol = run.protocol(metric)
        for model, (other, earlier) in by_model.items():
            if not _fits(run.model, protocol, {model: other}):
                raise ValueError(_mixture_error(other, earlier, protocol, run))
        by_model.setdefault(run.model, (protocol, run))
    return {model: protocol for model, (protocol, _) in by_model.items()}


def by_protocol(runs: Sequence[RunRecord], metric: str) -> list[list[RunRecord]]:
    """The runs in parts, in order of first appearance: those of one part may share a table."""
    parts: list[list[RunRecord]] = []
    measured: list[dict[str, Protocol]] = []  # by model, of each part
    for run in runs:
        protocol = run.protocol(metric)
        fitting = (index for index, part in enumerate(measured) if _fits(run.model, protocol, part))
        index = next(fitting, len(parts))
        if index == len(parts):
            parts.append([])
            measured.append({})
        parts[index].append(run)
        measured[index][run.model] = protocol
    return parts


def _fits(model: str, protocol: Protocol, by_model: Mapping[str, Protocol]) -> bool:
    """Whether a run may share a table: the very protocol of its model, one alike of others."""
    return all(
        protocol == other if model == name else _alike(protocol, other)
        for name, other in by_model.items()
    )


def _alike(one: Protocol, other: Protocol) -> bool:
    return replace(one, dtype="", tokens=0) == replace(other, dtype="", tokens=0)


def _mixture_error(
    first: Protocol, first_run: RunRecord, second: Protocol, second_run: RunRecord
) -> str:
    names = [field.name for field in fields(Protocol)]
    key = next(n for n in names if getattr(first, n) != getattr(second, n))
    return (
        f"{first_run.name} mixes two protocols, whose numbers cannot share a column:\n"
        f"  {first.label} ({first_run.folder})\n  {second.label} ({second_run.folder})\n"
        "give the folders of one protocol, or choose it, for example "
        f"--where {key}={getattr(first, key)}"
    )

"""Where a claim's cells come from, and what of them is still to be measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from sparsemend.names import METRIC
from sparsemend.result.format import format_metric
from sparsemend.sweep.arena.interval import LEVEL
from sparsemend.sweep.claims.cells import pairs_of
from sparsemend.sweep.claims.claim import Claim
from sparsemend.sweep.claims.facts import measured_dense
from sparsemend.sweep.claims.planned import progress_of


def progress_lines(claim: Claim) -> list[str]:
    """How many of the planned cells are measured, and what became of the others."""
    total = progress_of(claim.parts)
    parts = [
        f"{len(part.measured)} of {len(part.planned)} of `{' '.join(part.overrides)}`"
        for part in claim.parts
    ]
    several = f": {', '.join(parts)}" if len(parts) > 1 else ""
    lines = [f"* {total.text}{several}."]
    if claim.diverged:
        names = ", ".join(run.folder.name for run in claim.diverged)
        lines.append(f"* training diverged in {len(claim.diverged)} cells ({names}).")
    lines += [f"* cell {folder.name} {why}." for folder, why in claim.ended]
    return lines


def origin(claim: Claim) -> list[str]:
    """The last section of a page: commands, cells, hours, commits, machines."""
    runs = claim.runs
    provenance = [run.result.provenance for run in runs]
    commits = sorted({str(p.commit)[:10] for p in provenance})
    machines = sorted({f"{p.platform}, {p.device}, {p.threads} threads" for p in provenance})
    torch = sorted({str(p.packages.get("torch")) for p in provenance})
    state = ", some runs of uncommitted sources" if any(run.dirty for run in runs) else ""
    texts = dict.fromkeys((one.model, one.text) for one in claim.judged)
    dense = [
        f"{model} on {text} {format_metric(run.value('dense', METRIC), 3)}, of "
        f"{run.result.protocol.windows} windows of {run.result.protocol.seqlen} tokens"
        for model, text in texts
        if (run := measured_dense(runs, model, text)) is not None  # a task has none
    ]
    of_dense = f"  Dense perplexity: {', '.join(dense)}." if dense else ""
    return [
        "## Where it comes from",
        "",
        "```bash",
        *_commands(claim),
        "```",
        "",
        f"{len(runs)} cells, {claim.hours:.1f} hours; commit {', '.join(commits)}{state}; torch "
        f"{', '.join(torch)}; {'; '.join(machines)}.{of_dense}",
        f"Intervals: {LEVEL:.0%}, of the mean of paired differences, over which seeds and test "
        "windows are random; of one number a run (seconds, bytes) over seeds alone.",
    ]


def _commands(claim: Claim) -> list[str]:
    """The commands that make the cells anew: one for each set of overrides that no part swept.

    What a command has of its experiment's own sweep is left out.
    """
    parts: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for run in claim.runs:
        pairs = [pair for pair in pairs_of(run) if pair[0] not in (claim.chosen_key, "resume")]
        same = tuple(f"{key}={value}" for key, value in pairs if key not in claim.swept)
        swept = parts.setdefault(same, {})
        for key, value in pairs:
            values = swept.setdefault(key, []) if key in claim.swept else [value]
            if value not in values:
                values.append(value)
    return [
        shlex.join(["sparsemend", "-m", *_experiment_first(same), *_other_than(claim, swept)])
        for same, swept in parts.items()
    ]


def _experiment_first(lines: Sequence[str]) -> list[str]:
    return sorted(lines, key=lambda line: not line.startswith("experiment="))


def _other_than(claim: Claim, swept: Mapping[str, Sequence[str]]) -> list[str]:
    """The swept keys whose values are not all those that the experiment sweeps."""
    return [
        f"{key}={','.join(sorted(values))}"
        for key, values in swept.items()
        if set(values) != set(claim.swept[key])
    ]

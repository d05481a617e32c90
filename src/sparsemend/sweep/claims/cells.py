"""The cells of claims under some folders: finished, diverged in training, or ended otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemend.result.folder import read_result
from sparsemend.result.runs import RunRecord, find_runs, result_paths
from sparsemend.sweep.read import Cell, overrides_of

DIVERGED = FloatingPointError.__name__  # what a fit raises whose loss is not finite


@dataclass(frozen=True)
class ClaimCells:
    """The cells of one claim, each in the order of their numbers.

    diverged: failed since a loss was not finite, which says as much as a perplexity that is not.
    failed: otherwise; a choice counts them as tried.
    ended: (folder, why) of those that failed so, were stopped or still run.  None of these is of
    overrides of which another cell finished.
    """

    finished: tuple[RunRecord, ...]
    diverged: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]
    ended: tuple[tuple[Path, str], ...]

    @property
    def measured(self) -> tuple[RunRecord, ...]:
        """All that say something of the claim."""
        return (*self.finished, *self.diverged)


def read_claim_cells(folders: Sequence[Path]) -> dict[str, ClaimCells]:
    """The cells by claim, in the order of names; of claims that have a finished cell.

    Raises ValueError where there is none.
    """
    finished: dict[str, list[RunRecord]] = {}
    for run in find_runs(folders):
        if run.config.get("claim"):
            finished.setdefault(str(run.config["claim"]), []).append(run)
    if not finished:
        raise ValueError(
            f"no cell of a claim under {', '.join(map(str, folders))}; run "
            "sparsemend -m experiment=claims/dsnot, or give its folder"
        )
    others = _find_unfinished(folders)
    return {
        name: _cells_of([run for run in others if run.config.get("claim") == name], runs)
        for name, runs in sorted(finished.items())
    }


def _find_unfinished(folders: Sequence[Path]) -> list[RunRecord]:
    runs = []
    for path in result_paths(folders):
        result = read_result(path.parent)
        if result is not None and not result.finished:
            runs.append(RunRecord(path.parent, result))
    return runs


def _cells_of(others: Sequence[RunRecord], finished: Sequence[RunRecord]) -> ClaimCells:
    done = {_identity(run) for run in finished}
    others = [run for run in others if _identity(run) not in done]
    diverged = [run for run in others if _diverges(run)]
    rest = [run for run in others if not _diverges(run)]
    ended = [
        (run.folder, f"{cell.status}: {cell.reason}")
        for run in sorted(rest, key=number_of)
        for cell in [Cell(run.folder.name, {}, run.result)]
    ]
    return ClaimCells(
        tuple(sorted(finished, key=number_of)),
        tuple(sorted(diverged, key=number_of)),
        tuple(run for run in rest if run.result.status == "failed"),
        tuple(ended),
    )


def _identity(run: RunRecord) -> frozenset[tuple[str, str]]:
    """The overrides of a cell, less those of how it ran; that of its folder where it has none."""
    pairs = pairs_of(run) or [("folder", str(run.folder))]
    return frozenset(
        (key, value) for key, value in pairs if key.partition(".")[0] not in ("hardware", "resume")
    )


def _diverges(run: RunRecord) -> bool:
    error = run.result.error
    counted = run.result.sparsity.target is not None  # without which it has no row
    return error is not None and error.type == DIVERGED and counted


def number_of(run: RunRecord) -> tuple[str, int, str]:
    """By which the cells of one sweep are in the order in which they began."""
    name = run.folder.name
    return str(run.folder.parent), int(name) if name.isdigit() else -1, name


def pairs_of(run: RunRecord) -> list[tuple[str, str]]:
    """(key, value) of the overrides of a cell."""
    lines = (line.partition("=") for line in overrides_of(run.folder))
    return [(key, value) for key, _, value in lines]

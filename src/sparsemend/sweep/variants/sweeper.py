"""The sweep of variants: learning rates are chosen with the first seed, the other seeds follow.

Every variant takes the rate of its lowest validation loss; with the further seeds it runs at that
rate alone.  These jobs are numbered after those of the first seed, so that the same command in the
same folder continues.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemend.config.values import override_key
from sparsemend.result.folder import read_result
from sparsemend.sweep.claims.sweeper import row_of
from sparsemend.sweep.sweeper import CellSweeper

log = logging.getLogger(__name__)

VALIDATION = "validation/loss"  # of a fit's best weights, in its diagnostics
SEED, RATE = "seed", "method.learning_rate"
Rest = tuple[str, ...]  # of a job, the lines that are neither its seed nor its rate


class VariantSweeper(CellSweeper):
    """The sweeper of cells, which runs further seeds at each variant's best rate alone."""

    def sweep(self, arguments: list[str]) -> Any:
        jobs = self.jobs_of(arguments)
        seeds = [value_of(job, SEED) for job in jobs]
        first = [job for job, seed in zip(jobs, seeds, strict=True) if seed == seeds[0]]
        returned = self.launch(first, first=0)
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        losses = {number: validation_loss(folder / str(number)) for number in range(len(first))}
        chosen = best_rates(first, [losses[number] for number in range(len(first))])
        others = [
            job
            for job, seed in zip(jobs, seeds, strict=True)
            if seed != seeds[0] and value_of(job, RATE) == chosen.get(row_of(job, RATE))
        ]
        return returned + self.launch(others, first=len(first))


def value_of(job: Sequence[str], key: str) -> str | None:
    """The value that a job's lines give a key; None where no line does."""
    return next((line.partition("=")[2] for line in job if override_key(line) == key), None)


def validation_loss(folder: Path) -> float | None:
    """The validation loss of a finished run's best weights; None where there is none."""
    result = read_result(folder)
    if result is None or not result.finished:
        return None
    loss = result.repair.diagnostics.get(VALIDATION)
    return None if loss is None else float(loss)


def best_rates(
    jobs: Sequence[Sequence[str]], losses: Sequence[float | None]
) -> dict[Rest, str | None]:
    """Variant -> its rate of lowest loss; a variant without a loss is left out."""
    best: dict[Rest, tuple[float, str | None]] = {}
    for job, loss in zip(jobs, losses, strict=True):
        variant = row_of(job, RATE)
        if loss is not None and (variant not in best or loss < best[variant][0]):
            best[variant] = (loss, value_of(job, RATE))
    for variant, (loss, rate) in best.items():
        log.info("%s: rate %s, validation loss %.4f", " ".join(variant), rate, loss)
    return {variant: rate for variant, (_, rate) in best.items()}

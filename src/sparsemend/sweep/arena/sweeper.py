"""The sweep of `experiment=arena`: every row with every seed.

With budget=seconds it first runs two short pilots of every row, on the first seed: a fit of n steps
takes a + b n seconds, so the row gets n = (seconds - a) / b steps.  Pilots are whole multiples of
the steps between two validations, so that b holds the share of validation.  Learning-rate
schedules, rounds and ramps then end where the budget does; stopping by the clock would cut them
off.  Pilots are numbered after the rows, so that the same command in the same folder continues.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.result.folder import read_result
from sparsemend.sweep.sweeper import CellSweeper

log = logging.getLogger(__name__)

PILOT = ("arena.pilot=true", "arena.asked=[]")


class ArenaSweeper(CellSweeper):
    """The sweeper of cells, which with budget=seconds gives every row the steps that fit."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        if self.config.get("budget") != "seconds":
            return super().sweep(arguments)
        jobs = self.jobs_of(arguments)
        fits = self._measure(jobs)
        chosen = [self._within(job, fits) for job in jobs]
        return self.launch(chosen, first=0)

    def _measure(self, jobs: Sequence[list[str]]) -> dict[tuple[str, ...], CostLine]:
        """Run the pilots; return the cost of each row, by its overrides apart from the seed."""
        rows: dict[tuple[str, ...], list[str]] = {}
        for job in jobs:
            rows.setdefault(row_of(job), job)
        settings = {row: self._arena(job) for row, job in rows.items()}
        pilots = [
            (row, length, [*rows[row], *PILOT, f"{arena['length']}={length}"])
            for row, arena in settings.items()
            if arena["length"] is not None
            for length in arena["pilots"]
        ]
        log.info("%d pilots say how long the rows may be", len(pilots))
        self.launch([job for _, _, job in pilots], first=len(jobs))
        folder = Path(self.config.hydra.sweep.dir)  # type: ignore[union-attr]
        seconds: dict[tuple[str, ...], dict[int, float]] = {row: {} for row, _, _ in pilots}
        for number, (row, length, _) in enumerate(pilots, start=len(jobs)):
            duration = pilot_seconds(folder / str(number))
            if duration is not None:
                seconds[row][length] = duration
        return {
            row: fit
            for row, durations in seconds.items()
            if (fit := fit_of(settings[row], durations)) is not None
        }

    def _within(self, job: list[str], fits: Mapping[tuple[str, ...], CostLine]) -> list[str]:
        fit = fits.get(row_of(job))
        return job if fit is None else [*job, f"{fit.key}={fit.length}"]

    def _arena(self, job: list[str]) -> dict[str, Any]:
        """The `arena` section of one job."""
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        cfg: DictConfig = loader.load_sweep_config(self.config, job)
        arena: dict[str, Any] = OmegaConf.to_container(cfg.arena, resolve=True)  # type: ignore[assignment]
        return arena


class CostLine:
    """Seconds of a row as a line through its pilots, and the length that fits into a budget."""

    def __init__(self, key: str, budget: float, seconds: Mapping[int, float]) -> None:
        """key: config key of the length.  budget: seconds.  seconds: by length, two or more."""
        self.key = key
        short, long = min(seconds), max(seconds)
        self.slope = (seconds[long] - seconds[short]) / (long - short) if long > short else 0.0
        self.start = seconds[short] - self.slope * short
        self.budget, self.shortest = budget, short

    @property
    def length(self) -> int:
        """Steps that fit; at least those of the shorter pilot, which the table then shows as over.

        Where the longer pilot took no longer, the clock's noise hides the cost of a step, so the
        row gets the shortest length.
        """
        if self.slope <= 0:
            return self.shortest
        return max(self.shortest, int((self.budget - self.start) / self.slope))


def pilot_seconds(folder: Path) -> float | None:
    """Seconds of a pilot's repair; None where it did not finish, or was interrupted."""
    result = read_result(folder)
    if result is None or not result.finished:
        return None
    if result.earlier_attempts:
        log.error("the pilot in %s was interrupted; remove the folder to time it again", folder)
        return None
    return result.cost["repair"].seconds


def fit_of(arena: Mapping[str, Any], seconds: Mapping[int, float]) -> CostLine | None:
    """A row's line through its pilots; None where fewer than two gave a time.

    Logs an error then, and where the longer pilot took no longer.
    """
    fit = CostLine(str(arena["length"]), arena["seconds"], seconds) if len(seconds) > 1 else None
    if fit is None:
        log.error(
            "row %s: %d of its pilots gave a time, two are needed; it keeps its own %s, whatever "
            "that takes",
            arena["row"],
            len(seconds),
            arena["length"],
        )
    elif fit.slope <= 0:
        log.error(
            "row %s: its longer pilot took no longer, so the row is as short as the shorter one; "
            "give longer arena.pilots",
            arena["row"],
        )
    return fit


def row_of(job: Sequence[str]) -> tuple[str, ...]:
    """A job's overrides except its seed, which all seeds of the row share."""
    return tuple(line for line in job if not line.startswith("seed="))

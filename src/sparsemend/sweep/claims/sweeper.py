"""The sweep of a claim: every row with every seed, and the trials among which validation chooses.

A job whose config has the chosen key is first tried on one seed at several values; all its seeds
then get the value of the lowest `perplexity/validation`.  A cell has the number of the folder that
holds its overrides, else the next free one, so that parts of a claim (`arena=lors`, `seed=2`,
another text) share its folder, and the same command goes on after a stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from sparsemend.config.values import override_key
from sparsemend.names import VALIDATION_METRIC
from sparsemend.result.folder import read_result
from sparsemend.sweep.cells import identity, runs_here
from sparsemend.sweep.claims.choice import BRACKET, MOST, best_value, bracket
from sparsemend.sweep.claims.statements import trial_rule_of
from sparsemend.sweep.read import overrides_of
from sparsemend.sweep.search.space import space_of
from sparsemend.sweep.sweeper import CellSweeper

log = logging.getLogger(__name__)

PAUSE = 5.0  # seconds between two looks at a trial that another process runs


class ClaimSweeper(CellSweeper):
    """The sweeper of cells, which chooses the value of one key on the way."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        choose: Mapping[str, Any],
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.choose = choose
        self.chosen: dict[tuple[str, ...], float | None] = {}

    def sweep(self, arguments: list[str]) -> Any:
        self._check_chosen(arguments)
        jobs = self.jobs_of(arguments)
        first: dict[tuple[str, ...], list[str]] = {}  # job of each row
        for job in jobs:
            first.setdefault(row_of(job, self.choose["key"]), job)
        choosing = [row for row, job in first.items() if self._chooses(job)]
        self._check_trials(choosing)
        returned = []
        for job in jobs:
            row = row_of(job, self.choose["key"])
            if row not in choosing:
                returned += self._cell(job)
                continue
            if row not in self.chosen:
                self.chosen[row] = self._choice(row)
            value = self.chosen[row]
            if value is None:
                log.error(
                    "no trial of %s has a finite validation; no seed of it runs", " ".join(row)
                )
                continue
            seed = next(line for line in job if override_key(line) == "seed")
            returned += self._cell([*row, seed, f"{self.choose['key']}={value!r}"])
        return returned

    def _check_chosen(self, arguments: Sequence[str]) -> None:
        """Raise where the command gives the key that validation chooses: no cell would have it."""
        key = self.choose["key"]
        for line in arguments:
            if key and override_key(line) == key:
                raise CompactHydraException(
                    f"error: {line} would have no effect, since validation chooses {key} here; "
                    "leave it out, or give hydra.sweeper.choose.points=[...] the values to choose "
                    "among (one value fixes it)"
                )

    def _check_trials(self, rows: Collection[Sequence[str]]) -> None:
        """Raise, before the first cell, where one of the rows that choose cannot try its values."""
        key, most = self.choose["key"], self.choose["stop_after"]
        if most is not None and not (isinstance(most, int) and most > 0):
            raise CompactHydraException(
                f"error: hydra.sweeper.choose.stop_after={most} is not null or an integer of at "
                "least 1"
            )
        for row in rows:
            config = self._config_of([*row, f"seed={self.choose['seed']}"])
            if not OmegaConf.select(config, "evaluation.perplexity.validation"):
                raise CompactHydraException(
                    f"error: validation chooses {key} here, and it is not measured; set "
                    "evaluation.perplexity.validation=true"
                )
            if self.choose["points"] == BRACKET:
                self._start(config)
            else:
                self._points(config)

    def _start(self, config: DictConfig) -> float:
        """The value at which a bracket begins, which a factor moves."""
        start = OmegaConf.select(config, self.choose["key"], throw_on_missing=False)
        if not isinstance(start, int | float) or not start > 0:
            raise CompactHydraException(
                f"error: {self.choose['key']}={start} is no value above 0 at which a bracket "
                "begins; give hydra.sweeper.choose.points=[...] the values to choose among"
            )
        return float(start)

    def _chooses(self, job: Sequence[str]) -> bool:
        key = self.choose["key"]
        group, _, inner = str(key).rpartition(".")
        section = OmegaConf.select(self._config_of(job), group) if key else None
        return isinstance(section, DictConfig) and inner in section

    def _choice(self, row: Sequence[str]) -> float | None:
        """The value that validation chooses for a row, after its trials."""
        key, seed = self.choose["key"], f"seed={self.choose['seed']}"

        def objective(value: float) -> float:
            job = [*row, seed, f"{key}={value!r}"]
            self._cell(job)
            folder = self._folder_of(job)
            while (result := read_result(folder)) is not None and runs_here(result, folder):
                sleep(PAUSE)
                self._cell(job)
            if result is None or not result.finished:
                return math.inf  # a failed one counts as little on the page
            number = result.metric("repaired", VALIDATION_METRIC)
            return math.inf if number is None else number

        config, rule = self._config_of([*row, seed]), trial_rule_of(self.choose)
        if self.choose["points"] == BRACKET:
            start = self._start(config)
            tried = bracket(start, float(self.choose["factor"]), objective, most=MOST)
        else:
            tried = rule.try_each(self._points(config), objective)
        value = best_value(tried)
        edge = ", at the edge: a better one may lie beyond"
        log.info(
            "validation chooses %s=%s of %s%s",
            key,
            value,
            ", ".join(map(str, sorted(tried))),
            edge * (value is not None and rule.at_edge(value, tried)),
        )
        return value

    def _points(self, config: DictConfig) -> Sequence[float]:
        """The points of a list, or of a grid up to a bound, as a search has them."""
        bound = self.choose["bound"]
        node = {"_target_": bound, "blocks": None} if bound is not None else None
        search = {
            "key": self.choose["key"],
            "sampler": "listed",
            "points": self.choose["points"],
            "count": self.choose["count"],
            "step": None,
            "baseline": None,
            "bound": node,
        }
        with open_dict(config):
            config.search = search
        try:
            points = space_of(config).values.points  # type: ignore[union-attr]
        except ValueError as error:
            raise CompactHydraException(f"error: {error}") from error
        return [float(point) for point in points]

    def _config_of(self, job: Sequence[str]) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(job))

    def _cell(self, job: list[str]) -> list[Any]:
        """Run one cell in its folder; what was finished with this configuration stays."""
        return self.launch([job], first=int(self._folder_of(job).name))

    def _folder_of(self, job: Sequence[str]) -> Path:
        """The folder that holds the job's overrides, or a new one with the next free number."""
        assert self.config is not None
        root = Path(self.config.hydra.sweep.dir)
        wanted = sorted(identity(job))
        numbers = [-1]
        for path in root.glob("*"):
            if not path.name.isdigit():
                continue
            numbers.append(int(path.name))
            if sorted(identity(overrides_of(path))) == wanted:
                return path
        number = max(numbers)
        while True:
            number += 1
            folder = root / str(number)
            try:
                folder.mkdir(parents=True)
            except FileExistsError:  # another part of this claim, started a moment ago
                continue
            return folder


def row_of(job: Sequence[str], key: str | None) -> tuple[str, ...]:
    """A job's overrides without its seed and the key that is chosen, which all seeds share."""
    return tuple(line for line in job if override_key(line) not in ("seed", key))

"""A search: hydra-optuna-sweeper on one key, resumable, with samplers of our own.

The plugin's sweeper runs the trials; this one gives it the space that follows from the config, a
sampler, and only the trials that are missing.  Trials that were running when the search was killed
are told their objective if their cell finished, else they are tried again.  A trial whose
objective is NaN has failed and does not stop the search; where its cell finished, it is not tried
again either, since it would end the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState

from sparsemend.config.values import override_key, plain
from sparsemend.names import RESULT
from sparsemend.result.folder import read_result
from sparsemend.result.record import objective
from sparsemend.sweep.search.samplers import make_sampler, suggest
from sparsemend.sweep.search.space import Interval, Space, space_of
from sparsemend.sweep.sweeper import blame_compactly, brief_log, launching, pin_folder_

log = logging.getLogger(__name__)


class SearchSweeper(Sweeper):
    """Minimises what jobs return over `search.key`."""

    def __init__(self, *, storage: str, study_name: str, jobs: int) -> None:
        self.storage, self.study_name, self.jobs = storage, study_name, jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        pin_folder_(config)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.config, self.folder = config, Path(config.hydra.sweep.dir)
        self.statistics = config.statistics
        self.space = space_of(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        with blame_compactly(
            f"the search's storage {self.storage}", "remove its file to search anew"
        ):
            self.study = optuna.create_study(
                storage=self.storage, study_name=self.study_name, load_if_exists=True
            )
        _settle(self.study, self.folder, config)
        trials = self.study.trials
        # one that waits was enqueued last, and runs first
        self.since = sum(trial.state != TrialState.WAITING for trial in trials)
        self.lost = [trial for trial in trials if _is_lost(trial, self.folder)]
        self.done = self.since - len(self.lost)
        self.sweeper = self._plugin()
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.sweeper.job_idx = self.since  # a trial's cell has the trial's number
        launcher: Launcher | None = self.sweeper.launcher
        assert launcher is not None
        self.launcher: Launcher = launcher
        self.sweeper.launcher = OneLineLauncher(launcher)

    def _plugin(self) -> OptunaSweeperImpl:
        plugin = OptunaSweeperImpl(
            sampler=make_sampler(
                self.space, since=self.since, lost=frozenset(trial.number for trial in self.lost)
            ),
            direction="minimize",
            storage=self.storage,
            study_name=self.study_name,
            n_trials=max(0, self.space.values.total - self.done),
            n_jobs=self.jobs,
            max_failure_rate=1.0,
            custom_search_space=None,
            params=None,
        )
        plugin.custom_search_space_extender = partial(_suggest, self.space)
        return plugin

    def sweep(self, arguments: list[str]) -> None:
        self._enqueue()
        if self.since:
            total = self.space.values.total
            log.info("%d of %d trials are done, going on", self.done, total)
        try:
            with brief_log(self.launcher, arguments):
                self.sweeper.sweep(arguments)
        except ValueError as error:
            if _complete(self.study):
                raise
            # the plugin asks for the best trial where there is none
            raise CompactHydraException(_all_failed(self.folder)) from error
        if self.statistics == "dense":
            self._confirm(arguments)

    def _enqueue(self) -> None:
        """Let an interval's sampler begin with the baseline and the lost values that are missing.

        A golden section and TPE might never propose them again; a list does.
        """
        values, key = self.space.values, self.space.key
        if not isinstance(values, Interval):
            return
        kept = [t for t in self.study.trials if t.number not in {lost.number for lost in self.lost}]
        tried = {t.system_attrs.get("fixed_params", t.params).get(key) for t in kept}
        first = [] if values.baseline is None else [float(values.baseline)]
        lost = [trial.params[key] for trial in self.lost if key in trial.params]
        for value in dict.fromkeys([*first, *lost]):
            if value not in tried:
                self.study.enqueue_trial({key: value})

    def _confirm(self, arguments: list[str]) -> None:
        """Run one more cell, the best point by the papers' protocol, for the report to compare."""
        best = self.study.best_trial.params[self.space.key]
        kept = [line for line in arguments if override_key(line) != "statistics"]
        overrides = [*kept, f"{self.space.key}={best}", "statistics=exact"]
        number = len(self.study.trials)
        assert self.sweeper.launcher is not None
        self.sweeper.launcher.launch([overrides], initial_job_idx=number)


class OneLineLauncher(Launcher):
    """Another launcher, whose own errors are one line each."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        with launching(self.launcher):
            return self.launcher.launch(job_overrides, initial_job_idx)


def _suggest(space: Space, config: DictConfig, trial: Trial) -> None:
    suggest(space, trial)


def _complete(study: optuna.Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _is_lost(trial: FrozenTrial, folder: Path) -> bool:
    """Whether a trial failed before its cell finished, so that it is worth another try."""
    if trial.state != TrialState.FAIL:
        return False
    result = read_result(folder / str(trial.number))
    return result is None or not result.finished


def _settle(study: optuna.Study, folder: Path, config: DictConfig) -> None:
    """End the trials that ran when the search was killed: by their result, or as failed."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        result = read_result(folder / str(trial.number))
        value = math.nan
        if result is not None and result.finished and trial.params:
            value = objective(result, plain_search(config))
        if math.isnan(value):
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            study.tell(trial.number, value)


def plain_search(config: DictConfig) -> dict[str, Any]:
    """The part of a config that says what the objective is."""
    return {"search": plain(config.search)}


def _all_failed(folder: Path) -> str:
    """The error message of a search in which every trial failed."""
    trials = [path for path in folder.glob(f"*/{RESULT}") if path.parent.name.isdigit()]
    for path in sorted(trials, key=lambda path: int(path.parent.name)):
        result = read_result(path.parent)
        if result is not None and result.error is not None:
            return f"every trial failed; the first error, in {path.parent}: {result.error.message}"
    return f"every trial gave a perplexity that is not finite; see the table in {folder}"

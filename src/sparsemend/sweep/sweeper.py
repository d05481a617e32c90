"""The sweeper: one job per combination of the swept values, each with the keys that it has.

As Hydra's `basic`, but a key that only some swept members have is left out of the other cells, and
the launcher's log names what varies instead of repeating every override.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from sparsemend.config.jobs import Choices, cells_of, keys_in, stated_keys
from sparsemend.config.override_names import Names, is_search_line
from sparsemend.config.values import override_key
from sparsemend.errors import USER_ERRORS, blame

log = logging.getLogger(__name__)

JOB = re.compile(r"\t#(\d+) : (.*)", re.DOTALL)  # how Hydra's launchers announce a job


class CellSweeper(BasicSweeper):
    """Hydra's own sweeper, for cells that do not share all keys."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        pin_folder_(config)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        lines = [str(line) for line in config.hydra.overrides.hydra]
        search = [line for line in lines if is_search_line(line)]
        job = config.hydra.job
        self.names = Names(hydra_context.config_loader, job.config_name, search, job.name)

    def sweep(self, arguments: list[str]) -> Any:
        return self.launch(self.jobs_of(arguments), first=0)

    def jobs_of(self, arguments: list[str]) -> list[list[str]]:
        """The override lines of every job; logs the keys that some of them leave out."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = self.split_arguments(overrides, None)[0]

        def keys_of(choices: Choices) -> set[str]:
            assert self.config is not None
            return keys_in(loader.load_sweep_config(self.config, list(choices)))

        stated = stated_keys(self.params, arguments, self.names.is_choice)
        cells = cells_of(jobs, self.names.is_choice, keys_of, stated)
        if cells.notice:
            log.info(cells.notice)
        return cells.jobs

    def launch(self, jobs: list[list[str]], *, first: int) -> list[Any]:
        """Run jobs, numbered from `first`, and return what the launcher returns per batch."""
        assert self.launcher is not None
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        batches = self.split_overrides_to_chunks(jobs, self.max_batch_size) if jobs else []
        returned = []
        for batch in batches:
            self.validate_batch_is_legal(batch)
            with brief_log(self.launcher, _shared_lines(batch)), launching(self.launcher):
                results = self.launcher.launch(batch, initial_job_idx=first)
            for result in results:
                _ = result.return_value  # raises what the job raised
            first += len(batch)
            returned.append(results)
        return returned

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose one job per set of keys: those that differ in values alone are as legal."""
        is_choice = self.names.is_choice
        kinds = {
            tuple(line if is_choice(line) else override_key(line) for line in job): job
            for job in batch
        }
        super().validate_batch_is_legal(list(kinds.values()))


def pin_folder_(config: DictConfig) -> None:
    """Give every job of a sweep the sweep's own folder.

    A job would work out `hydra.sweep.dir` again from its own values: `${name}`, which each of
    several swept experiments sets, would put its cell where the sweep does not look.
    """
    folder = QuotedString(str(config.hydra.sweep.dir), Quote.single).with_quotes()
    lines = config.hydra.overrides.hydra
    with read_write(lines):
        lines.append(f"hydra.sweep.dir={folder}")


@contextmanager
def launching(launcher: Launcher) -> Iterator[None]:
    """Say in one line what a launcher raises of its own: jobs record their errors themselves."""
    what = f"hydra/launcher ({type(launcher).__name__})"
    with blame_compactly(
        what, "mend what it says, or take hydra/launcher=basic, which needs nothing"
    ):
        yield


@contextmanager
def blame_compactly(what: str, remedy: str) -> Iterator[None]:
    """Blame `what` for an error of a library, and let Hydra show no traceback of a user's error."""
    try:
        with blame(what, remedy):
            yield
    except USER_ERRORS as error:
        raise CompactHydraException(f"error: {error}") from error


def _shared_lines(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The lines that all of several jobs have."""
    return [line for line in jobs[0] if len(jobs) > 1 and all(line in job for job in jobs)]


@contextmanager
def brief_log(launcher: Launcher, shared: Iterable[str]) -> Iterator[None]:
    """A launcher's line on a job names the job's overrides without those that all jobs share."""

    def shorten(record: logging.LogRecord) -> bool:
        match = JOB.fullmatch(record.getMessage())
        if match:
            text = f" {match[2]} "
            for line in shared:
                text = text.replace(f" {line} ", " ", 1)
            record.msg, record.args = f"cell {match[1]}: {text.strip()}", ()
        return True

    module = type(launcher).__module__
    # a plugin's class lies beside the code that logs
    loggers = [logging.getLogger(n) for n in (module, f"{module.rpartition('.')[0]}._core")]
    for logger in loggers:
        logger.addFilter(shorten)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(shorten)

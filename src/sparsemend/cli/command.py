"""The start and the end that commands share: check names and values first, end errors as one line.

A command line is checked before Hydra makes a run folder and before torch is imported, so that a
typo costs a second and leaves nothing behind.  Exit codes: 0 done, 1 a refused value or a failed
run, 2 an unknown name, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from sparsemend.cli.version import print_version_if_asked
from sparsemend.config.compose import compose_command, search_lines
from sparsemend.errors import USER_ERRORS, OverrideError, full_disk, lacks_disk
from sparsemend.preflight.place import check_place, check_room
from sparsemend.sweep.sweeper import CellSweeper
from sparsemend.terminal import say

# what conf/hydra/*_logging may construct
LOGGING_TARGETS = ["rich.logging.RichHandler", "sparsemend.terminal.LogFile"]

TERMINATED = 128 + signal.SIGTERM  # the exit code of shells

# Before Hydra sets logging up, warnings wait for the run itself, which checks again and logs them.
logging.getLogger("sparsemend").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Command:
    """One console command: a Hydra app on conf/<config_name>.yaml.

    check(cfg, search) raises ValueError or OSError on a value that cannot work; `search` holds the
    override lines that put the user's own config folders on the search path.  check_sweep(configs,
    lines) does the same for the jobs of a sweep and its overrides as Hydra gets them.
    """

    name: str
    config_name: str
    check: Callable[[DictConfig, list[str]], None]
    check_sweep: Callable[[list[DictConfig], list[str]], None] | None = None
    if_interrupted: str = ""  # how to go on

    def launch(self, job: Callable[[], object]) -> None:
        """Check the command line, then run the Hydra app `job`."""
        print_version_if_asked(self.name)
        # names the run folder; workers of a parallel launcher inherit it, so they agree on the
        # sweep's folder
        os.environ["SPARSEMEND_RUN_ID"] = str(os.getpid())
        previous_hook, sys.excepthook = sys.excepthook, report
        Plugins.instance().register(CellSweeper)  # Hydra takes no sweeper by its class name alone
        try:
            with stopped_in_one_line(self.if_interrupted):
                self.check_command_line()
                job()
        except OverrideError as error:
            say(str(error))
            sys.exit(2)
        finally:
            sys.excepthook = previous_hook

    def check_command_line(self) -> None:
        """Raise OverrideError on an unknown name; exit 1 on a value that cannot work.

        The jobs of a sweep check their values again when they start, since a sweep may touch the
        edge of a range.
        """
        args = get_args_parser().parse_intermixed_args()
        if args.help or args.hydra_help or args.shell_completion:
            return
        if args.multirun and (args.cfg or args.info):
            raise OverrideError(
                "--cfg and --info show one job; leave -m out and give each key one value"
            )
        if args.config_path is not None or args.experimental_rerun is not None:
            return  # another tree of configs: Hydra reports errors, and the job checks the values
        extra = Path(args.config_dir) if args.config_dir else None
        composed = compose_command(
            args.overrides,
            config_name=args.config_name or self.config_name,
            extra=extra,
            multirun=args.multirun,
            command=self.name,
        )
        deferred = dict(zip(args.overrides, composed.lines, strict=True))
        sys.argv = [deferred.get(argument, argument) for argument in sys.argv]
        if args.cfg or args.info or (composed.sweep and self.check_sweep is None):
            return
        try:
            check_place(composed.folder)
            if composed.sweep and self.check_sweep is not None:
                self.check_sweep(composed.configs, composed.lines)
                return
            self.check(composed.configs[0], search_lines(args.overrides, extra))
            check_room(composed.configs[0], composed.folder)
        except (*USER_ERRORS, OmegaConfBaseException) as error:
            say(str(error))
            sys.exit(1)


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook: one line for a user's error, the traceback for anything else."""
    if not issubclass(kind, USER_ERRORS):
        sys.__excepthook__(kind, error, trace)
        return
    full = full_disk("before a stage began", error) if lacks_disk(error) else None
    say(str(full or error) or kind.__name__)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            Console(stderr=True, soft_wrap=True).print(
                f"the traceback is in {handler.baseFilename}", highlight=False, markup=False
            )


@contextmanager
def stopped_in_one_line(how_to_go_on: str = "") -> Iterator[None]:
    """Say in one line that Ctrl-C (exit code 130) or SIGTERM (143) ended what is inside.

    SIGTERM ends the main thread inside as Ctrl-C does, so that a run can write why it ended, unless
    the process has a handler of its own.
    """
    with exiting_at_sigterm():
        try:
            yield
        except KeyboardInterrupt:
            exit_interrupted(how_to_go_on)
        except SystemExit as stop:
            # Lightning turns an interrupt during training into exit code 1
            if isinstance(stop.__context__, KeyboardInterrupt):
                exit_interrupted(how_to_go_on)
            # of a worker whose SIGTERM met Lightning's handler alone, without a code
            if stop.code == TERMINATED or type(stop).__name__ == "SIGTERMException":
                exit_interrupted(how_to_go_on, TERMINATED)
            raise


@contextmanager
def exiting_at_sigterm() -> Iterator[None]:
    """Inside, the first SIGTERM raises SystemExit(143) in the main thread; others do nothing.

    `timeout` sends two, and the second must not end the writing of the result.
    """
    ended: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        ended.append(number)
        if len(ended) == 1:
            raise SystemExit(TERMINATED)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_interrupted(how_to_go_on: str, code: int = 130) -> None:
    """Exit as shells expect of a command stopped by Ctrl-C, or with the `code` of a signal."""
    say(f"interrupted{how_to_go_on}")
    sys.exit(code)

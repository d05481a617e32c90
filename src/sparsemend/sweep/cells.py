"""The cells of a sweep: which are done, which are redone, and how one that fails is recorded.

A cell is a folder of the sweep's folder.  Started again in the same folder, a sweep skips the
cells that finished with their present configuration, continues those that left a checkpoint and
redoes the others.  Free of torch until a cell really runs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep

from omegaconf import DictConfig

from sparsemend.config.values import config_hash, differences, override_key, plain
from sparsemend.errors import USER_ERRORS
from sparsemend.files import forget_partials, write_json
from sparsemend.names import RESULT, SWEEP
from sparsemend.result.folder import alive, read_result, this_process
from sparsemend.result.record import objective
from sparsemend.result.run_result import RunResult
from sparsemend.result.sections import ProcessId

log = logging.getLogger(__name__)

SCHEMA = "sparsemend-sweep-1"
WATCH = "sparsemend-watch"  # the thread that ends a worker with its command


def run_cell(
    cfg: DictConfig,
    folder: Path,
    check: Callable[[DictConfig], None],
    run: Callable[[DictConfig], float],
) -> float:
    """The objective of one cell: from its result if it finished, else by running it.

    NaN where check or run raises; the error is then in the cell's result.json, so that it neither
    stops the sweep nor is lost.
    """
    config = plain(cfg)
    earlier = read_result(folder)
    if earlier and earlier.finished and earlier.config_hash == config_hash(config):
        log.info("finished earlier, not run again: %s", folder)
        return objective(earlier, config)
    if earlier and runs_here(earlier, folder):
        log.error("%s is still run by process %d; wait for it", folder, earlier.process.pid)
        return math.nan
    try:
        check(cfg)
        return run(cfg)
    except Exception as error:
        result = read_result(folder)
        if result is None or result.status != "failed" or result.process != this_process():
            _record(cfg, folder, error)
        user_error = isinstance(error, USER_ERRORS)
        log.error("failed: %s", error, exc_info=None if user_error else error)
        return math.nan


def runs_here(result: RunResult, folder: Path) -> bool:
    """Whether another process of this machine runs the cell in `folder`.

    That of another machine cannot be seen, and its cell is taken up again.
    """
    here = result.process.host == this_process().host
    return here and alive(result.status, result.process, folder / RESULT)


def end_with_command() -> None:
    """Kill this process within a second of the end of the command whose worker it is, if any.

    Workers of a parallel launcher would go on after a kill -9 of the command, in the cells and with
    the memory that the same command needs when it is started again.
    """
    command = os.getppid()
    if os.environ.get("SPARSEMEND_RUN_ID") != str(command):
        return  # the command itself, or a job of a cluster

    def watch() -> None:
        while os.getppid() == command:
            sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    if all(thread.name != WATCH for thread in threading.enumerate()):
        threading.Thread(target=watch, name=WATCH, daemon=True).start()


def _record(cfg: DictConfig, folder: Path, error: Exception) -> None:
    """Write the result of a cell that was refused before it began."""
    from sparsemend.result.record import Result

    Result(folder / RESULT, cfg).fail(error)


def identity(overrides: Sequence[str]) -> list[str]:
    """The overrides that identify a sweep, in order, since their order numbers the cells."""
    return [
        line
        for line in overrides
        if override_key(line) != "resume" and not override_key(line).startswith("hydra.")
    ]


def begin(folder: Path, overrides: Sequence[str]) -> None:
    """Write into the sweep's folder which sweep it is and that it runs.

    What killed cells were writing goes: a search does not enter the folder of a trial again.
    """
    forget_partials(folder)
    facts = {
        "schema": SCHEMA,
        "status": "running",
        "process": this_process().to_json(),
        "overrides": identity(overrides),
    }
    write_json(folder / SWEEP, facts)


def end(folder: Path, *, finished: bool) -> None:
    """Write into the sweep's folder how the sweep ended."""
    facts = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    write_json(folder / SWEEP, {**facts, "status": "finished" if finished else "unfinished"})


def find_unfinished_sweep(root: Path, overrides: Sequence[str]) -> Path | None:
    """The newest sweep folder under `root` with these overrides that did not finish.

    Its name is that of the config without what is swept, which no job may have.

    Raises ValueError where it may still run: a second one would write into the same cells.
    """
    candidates = []
    for path in root.rglob(SWEEP):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        same = content.get("overrides") == identity(overrides)
        if same and content.get("status") != "finished":
            candidates.append((path.stat().st_mtime, path.parent, content))
    if not candidates:
        return None
    _, folder, content = max(candidates, key=lambda item: item[0])
    process = ProcessId.from_json(content.get("process", {}))
    if alive(content.get("status", ""), process, folder / SWEEP):
        raise ValueError(
            f"resume=auto: {folder} is this sweep and still runs (process {process.pid} on "
            f"{process.host}); wait for it, or give hydra.sweep.dir={folder} if it is dead"
        )
    return folder


def check_cells(folder: Path, configs: Sequence[DictConfig]) -> None:
    """Raise ValueError where a cell of `folder` has another configuration than its job."""
    for number, cfg in enumerate(configs):
        result = read_result(folder / str(number))
        if result is None or result.config_hash == config_hash(plain(cfg)):
            continue
        mismatches = differences(result.config, plain(cfg))
        raise ValueError(
            f"{folder}/{number} holds a cell of another sweep ({'; '.join(mismatches[:4])}); give "
            "that sweep's own overrides, or another hydra.sweep.dir"
        )

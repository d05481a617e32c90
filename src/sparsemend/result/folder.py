"""Read result.json of a run folder and tell whether its process still runs."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

from sparsemend.errors import brief
from sparsemend.names import RESULT
from sparsemend.result.run_result import RunResult
from sparsemend.result.sections import ProcessId

CLOCK_ERROR = 5.0  # seconds between the clocks of a file system and of processes
# SLURM's; of a job array every task has a number of its own
JOB, START = "SLURM_JOB_ID", "SLURM_RESTART_COUNT"


def read_result(folder: Path) -> RunResult | None:
    """result.json of a run folder, None where it is missing or cannot be read."""
    try:
        return load_result(folder / RESULT)
    except (OSError, ValueError):
        return None


def load_result(path: Path) -> RunResult:
    """The content of a result.json; raises OSError or ValueError where it cannot be read."""
    try:
        return RunResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a file changed by hand
        raise ValueError(
            f"{path} cannot be read ({brief(error)}); remove that file, or give another folder"
        ) from error


def this_process() -> ProcessId:
    """The process that asks."""
    job = os.environ.get(JOB)
    start = int(os.environ.get(START) or 0) if job else None
    return ProcessId(platform.node(), os.getpid(), job, start)


def alive(status: str, process: ProcessId, path: Path | None = None) -> bool:
    """Whether a run noted as running may still run, in another process or on another machine.

    path: the file that says so, which the process wrote: a younger process has only its number.
    """
    if status != "running":
        return False
    here = this_process()
    if process.job and process.job == here.job and (process.start or 0) < (here.start or 0):
        return False  # a cluster starts a job anew, perhaps elsewhere, when all of it has ended
    if process.host != here.host:
        return True  # cannot be seen from here; resume it by naming its folder
    if process.pid == here.pid:
        return False
    try:
        os.kill(process.pid, 0)
    except PermissionError:
        return True  # another user's; where it only took the number over, resume by folder
    except (OSError, OverflowError):
        return False
    taken_over = path is not None and _began_after(process.pid, path)
    return not taken_over and not _is_zombie(process.pid)


def _began_after(pid: int, path: Path) -> bool:
    """Whether a process is younger than a file, so that it has another one's number (Linux).

    In a container that is started anew the numbers of its processes come again.
    """
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="utf-8"), re.M)
        written = path.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return False
    if boot is None:
        return False
    began = int(boot[1]) + int(facts[19]) / os.sysconf("SC_CLK_TCK")  # field 22, after the name
    return began > written + CLOCK_ERROR


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits for its parent to notice (Linux)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return status.rpartition(")")[2].split()[0] in ("Z", "X")  # the name before it may hold blanks

"""Start the command many times in forks of one process that has imported everything, and kill it.

A fork takes a tenth of a second where a new process takes ten to import torch.  A kill is asked for
by what the attempt does, so that it falls at the same place on every machine:

files    before it touches (opens to write, moves, links, removes) its n-th file under its folder
passes   before it calls a decoder block for the n-th time
bytes    when a file that it writes has n bytes, so that the file is left half written
seconds  after so many processor seconds, nearly the same place

The first two are SIGKILL from within, the last SIGKILL from outside; by bytes the kernel ends the
process with SIGXFSZ, which is as abrupt: no line of Python runs after it.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
COUNTS = ("files", "passes")
LIMIT = 600.0  # seconds of an attempt that hangs
TEMPORARY = "temporary"  # in the folder of an attempt: what is the system's for temporary files
START, END = "start", "end"  # of an attempt, before its first and after its last stage

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
MOVES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


@dataclass(frozen=True)
class Kill:
    """A place to kill an attempt at.

    by: files | passes | bytes | seconds.  at: the n of above, from 1.  after: the number of the
    stage (in the attempt's marks) that must have begun before bytes are watched.
    """

    by: str
    at: float
    after: int = 0


@dataclass(frozen=True)
class Mark:
    """The begin of a stage: what was counted by then."""

    stage: str
    files: int
    passes: int
    seconds: float


@dataclass(frozen=True)
class Moved:
    """A finished file, or the largest of a folder, that was moved to its place."""

    mark: int  # number of the stage
    path: str
    size: int  # bytes


@dataclass(frozen=True)
class Attempt:
    """What an attempt did, and how it ended.

    code: exit code, or minus the signal that ended it.  said: both its outputs.
    """

    code: int
    said: str
    marks: list[Mark]
    moves: list[Moved]
    files: int
    passes: int
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)

    @property
    def stage(self) -> str:
        """The stage in which it ended."""
        return self.marks[-1].stage

    def count(self, by: str) -> float:
        value: float = getattr(self, by)
        return value

    def spans(self, by: str, stages: Collection[str]) -> list[tuple[float, float]]:
        """[first, last) counts `by` files, passes or seconds, of every time one of `stages` ran."""
        ends = [getattr(mark, by) for mark in self.marks[1:]] + [self.count(by)]
        pairs = zip(self.marks, ends, strict=True)
        spans = [(getattr(mark, by), end) for mark, end in pairs if mark.stage in stages]
        return [(first, end) for first, end in spans if end > first]

    def passes_in(self, stages: Collection[str]) -> int:
        """Block calls of `stages`."""
        return int(sum(end - first for first, end in self.spans("passes", stages)))

    def written_in(self, stages: Collection[str]) -> list[Moved]:
        """The files of more than a byte that `stages` moved to their places."""
        return [m for m in self.moves if self.marks[m.mark].stage in stages and m.size > 1]


class Starter:
    """A process that forks attempts."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crash.attempts"],
            env={**os.environ, "PYTHONPATH": path, **offline},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        kill: Kill | None = None,
        prelude: str = "",
    ) -> Attempt:
        """The command `sparsemend ARGUMENTS` in `folder`, killed where asked.

        prelude: Python that the attempt begins with; it is not counted.
        """
        (attempt,) = self.together([(arguments, kill, prelude)], folder)
        return attempt

    def together(
        self, asked: Sequence[tuple[Sequence[str], Kill | None, str]], folder: Path
    ) -> list[Attempt]:
        """Several attempts at the same time, each by (arguments, kill, prelude)."""
        attempts = [
            {"arguments": list(arguments), "kill": kill and vars(kill), "prelude": prelude}
            for arguments, kill, prelude in asked
        ]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(
            json.dumps({"folder": str(folder), "attempts": attempts}),
            file=self.process.stdin,
            flush=True,
        )
        answers = json.loads(self.process.stdout.readline())
        return [attempt_of(**answer) for answer in answers]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def attempt_of(lines: Sequence[list[Any]], **facts: Any) -> Attempt:
    """The attempt that wrote `lines`: [stage, counts...], and [None, path, size] of a move."""
    marks, moves = [], []
    for stage, *rest in lines:
        if stage is None:
            moves.append(Moved(len(marks) - 1, *rest))
        else:
            marks.append(Mark(stage, *rest))
    return Attempt(marks=marks or [Mark(START, 0, 0, 0.0)], moves=moves, **facts)


@contextmanager
def starter() -> Iterator[Starter]:
    """A Starter, which ends with the block."""
    start = Starter()
    try:
        yield start
    finally:
        start.close()


# In the process that forks


def serve() -> None:
    """Answer each line of attempts on stdin by a line of what they did."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    import_everything()
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        forks = [Fork(folder, **attempt) for attempt in asked["attempts"]]
        while any(fork.code is None for fork in forks):
            for fork in forks:
                fork.watch()
            time.sleep(0.0005)
        print(json.dumps([fork.answer() for fork in forks]), file=answers, flush=True)


def import_everything() -> None:
    """Import what attempts need, and read the config files, once for all of them."""
    import gc
    import importlib
    import pkgutil

    from support.configs import reading_once
    from transformers import logging as transformers_logging
    from transformers.models.llama import modeling_llama  # noqa: F401

    import sparsemend
    import sparsemend.run.run

    rooms = ("method", "pruner", "sparsity_schedule", "evaluation", "data", "sweep")
    for room in rooms:
        for module in pkgutil.walk_packages(
            [f"{sparsemend.__path__[0]}/{room}"], f"sparsemend.{room}."
        ):
            importlib.import_module(module.name)
    transformers_logging.disable_progress_bar()
    reading_once()
    read_configs()
    gc.freeze()


def read_configs() -> None:
    """Compose and check a command, so that forks have its yaml files and grammars in memory."""
    from sparsemend.config.compose import compose_command
    from sparsemend.preflight.declared import check_declared

    composed = compose_command(
        ["hydra.run.dir=/tmp", "seed=0"],
        config_name="run",
        extra=None,
        multirun=False,
        command="sparsemend",
    )
    check_declared(composed.configs[0], [])


@dataclass
class Fork:
    """An attempt under way."""

    folder: Path
    arguments: list[str]
    kill: dict[str, Any] | None
    prelude: str
    code: int | None = None
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.temporary = self.folder / TEMPORARY
        self.temporary.mkdir(exist_ok=True)
        self.counts = mmap.mmap(-1, 8 * len(COUNTS))
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.notes = tempfile.TemporaryFile()  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            self.run()

    def run(self) -> None:
        """The attempt itself, which does not return."""
        code = 70
        try:
            for stream in (1, 2):
                os.dup2(self.said.fileno(), stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            tempfile.tempdir = str(self.temporary)
            os.chdir(self.folder.resolve())
            exec(self.prelude, {})
            code = command(self.arguments, Counting(self, Kill(**self.kill) if self.kill else None))
        except BaseException:
            sys.excepthook(*sys.exc_info())  # the command's own, as Python would call it
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def watch(self) -> None:
        """Note its end, and kill it at its second, or where it hangs."""
        if self.code is not None:
            return
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
            self.seconds = usage.ru_utime + usage.ru_stime
            return
        late = self.kill is not None and self.kill["by"] == "seconds"
        if (late and worked(self.pid) >= self.kill["at"]) or (
            time.monotonic() - self.started > LIMIT
        ):
            os.kill(self.pid, signal.SIGKILL)

    def answer(self) -> dict[str, Any]:
        self.said.seek(0)
        self.notes.seek(0)
        lines = [json.loads(line) for line in self.notes.read().splitlines()]
        counts = struct.unpack("qq", self.counts[:])
        return {
            "code": self.code,
            "said": self.said.read().decode(errors="replace"),
            "lines": lines,
            **dict(zip(COUNTS, counts, strict=True)),
            "seconds": self.seconds,
        }


def worked(pid: int) -> float:
    """Processor seconds of another process (Linux)."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)
    except OSError:
        return 0.0  # it has ended


class Counting:
    """Counts what its process does, and kills it where asked."""

    def __init__(self, fork: Fork, kill: Kill | None) -> None:
        self.counts, self.notes, self.kill = fork.counts, fork.notes.fileno(), kill
        self.folder = fork.folder.resolve()
        self.numbers, self.marked = dict.fromkeys(COUNTS, 0), 0

    def begin(self) -> None:
        """Count from now on."""
        from torch.nn.modules.module import register_module_forward_pre_hook
        from transformers.modeling_layers import GradientCheckpointingLayer

        def called(module: Any, arguments: Any) -> None:
            if isinstance(module, GradientCheckpointingLayer):  # every decoder block of the library
                self.count("passes")

        register_module_forward_pre_hook(called)
        sys.addaudithook(self.touched)
        self.mark(START)

    def touched(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITES) or (mode is not None and set(mode) & set("wax+"))
            if not writes:
                return
        elif event in MOVES:
            path = arguments[1 if event in ("os.rename", "os.link", "os.symlink") else 0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        place = Path.cwd() / os.fsdecode(path)
        if place.is_relative_to(self.folder):
            self.count("files")
            if event == "os.rename":
                size = largest(Path(os.fsdecode(arguments[0])))
                self.note(None, str(place.relative_to(self.folder)), size)

    def count(self, what: str) -> None:
        self.numbers[what] += 1
        if self.kill is not None and (self.kill.by, self.kill.at) == (what, self.numbers[what]):
            os.kill(os.getpid(), signal.SIGKILL)
        struct.pack_into("q", self.counts, 8 * COUNTS.index(what), self.numbers[what])

    def mark(self, stage: str) -> None:
        self.note(stage, *self.numbers.values(), time.process_time())
        if self.kill is not None and self.kill.by == "bytes" and self.kill.after == self.marked:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which ends the process
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(self.kill.at), resource.RLIM_INFINITY))
        self.marked += 1

    def note(self, *facts: Any) -> None:
        os.write(self.notes, f"{json.dumps(facts)}\n".encode())


def largest(path: Path) -> int:
    """Bytes of a file, or of the largest in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return max((file.stat().st_size for file in files if file.is_file()), default=0)


def command(arguments: Sequence[str], counting: Counting) -> int:
    """The console command with its stages marked; its exit code."""
    from sparsemend import cost
    from sparsemend.cli import main as cli

    cost.Stages.measure = marked(cost.Stages.measure, counting)  # type: ignore[method-assign]
    sys.argv = ["sparsemend", *arguments]
    counting.begin()
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def marked(measure: Callable[..., Any], counting: Counting) -> Callable[..., Any]:
    """`Stages.measure`, whose begin and end are marked."""

    @contextmanager
    def measured(stages: Any, name: str, part: str | None = None) -> Iterator[None]:
        counting.mark(name)
        with measure(stages, name, part):
            yield
        counting.mark(END if name == "export" else f"after {name}")

    return measured


if __name__ == "__main__":
    serve()

"""The process that forks attempts, counts what each does, and kills it where it was asked to."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.attempts import END, START, TEMPORARY, Kill

COUNTS = ("files", "passes")
LIMIT = 600.0  # seconds of an attempt that hangs
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
MOVES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


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
        if self.kill is not None and self.kill.after == self.marked:
            self.limit(self.kill)
        self.marked += 1

    def limit(self, kill: Kill) -> None:
        """Let no file grow beyond kill.at bytes, where kills go by bytes."""
        if kill.by == "bytes":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which ends the process
        if kill.by in ("bytes", "full"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(kill.at), resource.RLIM_INFINITY))

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

"""Start the command many times in forks of one process that has imported everything, and kill it.

A fork takes a tenth of a second where a new process takes ten to import torch.  A kill is asked for
by what the attempt does, so that it falls at the same place on every machine:

files    before it touches (opens to write, moves, links, removes) its n-th file under its folder
passes   before it calls a decoder block for the n-th time
bytes    when a file that it writes has n bytes, so that the file is left half written
full     no kill: from then on no file can grow beyond n bytes, as on a disk that is full
seconds  after so many processor seconds, nearly the same place

The first two are SIGKILL from within, the last SIGKILL from outside; by bytes the kernel ends the
process with SIGXFSZ, which is as abrupt: no line of Python runs after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
TEMPORARY = "temporary"  # in the folder of an attempt: what is the system's for temporary files
START, END = "start", "end"  # of an attempt, before its first and after its last stage


@dataclass(frozen=True)
class Kill:
    """A place to kill an attempt at.

    by: files | passes | bytes | full | seconds.  at: the n of above, from 1.  after: the number of
    the stage (in the attempt's marks) that must have begun before bytes are watched.
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
            [sys.executable, "-m", "crash.forks"],
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

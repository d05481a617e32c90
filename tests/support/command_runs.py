"""The documented command for scripts on a workspace of files, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jsonschema
import torch
from safetensors.torch import load_file, save_file
from support.families import random_model
from support.process_state import process_state

import sparsemend
from sparsemend.cli import main as cli

SCHEMA = json.loads((Path(sparsemend.__file__).parent / "result" / "schema.json").read_text())
SOURCE = str(Path(sparsemend.__file__).parents[1])
SEQLEN = 32


def put_workspace(folder: Path) -> Path:
    """`folder`, with a random LLaMA and tokens files in it."""
    random_model("llama").save_pretrained(folder / "llama")
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("cal", 8), ("train", 24), ("test", 6)):
        tokens = torch.randint(3, 96, (rows, SEQLEN + 8), generator=generator)
        save_file({"input_ids": tokens}, folder / f"{name}.safetensors")
    return folder


def contract(workspace: Path, out: Path, *overrides: str) -> list[str]:
    """The documented command for scripts, with this workspace's files."""
    return [
        *files(workspace),
        "pruner=wanda",
        "sparsity=0.6",
        "pattern=unstructured",
        "export=true",
        "seed=0",
        f"hydra.run.dir={out}",
        *overrides,
    ]


def files(workspace: Path) -> list[str]:
    """Overrides that name this workspace's model and tokens."""
    return [
        "model=local",
        f"model.path={workspace / 'llama'}",
        "model.dtype=float32",
        "data=tokens",
        *(
            f"data.{key}={workspace / name}.safetensors"
            for key, name in (("calibration", "cal"), ("train", "train"), ("test", "test"))
        ),
        f"data.seqlen={SEQLEN}",
        "data.calibration_samples=8",
    ]


def sweep_files(workspace: Path) -> list[str]:
    """How a sweep, a search or an arena on this workspace begins."""
    return ["-m", *files(workspace), "hardware.threads=1", "export=true"]


def sparsemend_here(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in this process, which spares the seconds of importing torch once more."""
    return here(cli.main, ["sparsemend", *arguments], cwd)


def here(main: Callable[[], None], argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A console command's `main` in this process, which is left as it was."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        process_state(),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        sys.argv = argv
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(argv, code, stdout.getvalue(), stderr.getvalue())


def sparsemend_command(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return python(["-m", "sparsemend.cli.main", *arguments], cwd)


# Dies when it is about to move a finished file onto `pattern` for the `count`th time, so that what
# an attempt leaves is the same on every machine, however busy.
DYING = """
import os, sys
from pathlib import PurePath

pattern, left, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def watch(event, arguments):
    global left
    if event == "os.rename" and PurePath(os.fsdecode(arguments[1])).match(pattern):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

exec(sys.argv[4])
sys.addaudithook(watch)
sys.argv[:5] = ["sparsemend"]
from sparsemend.cli.main import main
main()
"""


def sparsemend_dying(
    arguments: Sequence[str],
    cwd: Path,
    *,
    before: str,
    count: int = 1,
    signal: int,
    prelude: str = "",
) -> subprocess.CompletedProcess[str]:
    """The command, which sends itself a signal before it writes `before` for the count-th time.

    before: the end of a path, as of PurePath.match; every file a run leaves is moved to its place
    when it is whole.  prelude: Python that the process begins with.
    """
    return python(["-c", DYING, before, str(count), str(int(signal)), prelude, *arguments], cwd)


def python(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own that finds this checkout's package."""
    path = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def result_of(out: Path) -> dict:
    """result.json of a run folder, which has to follow its schema."""
    result = json.loads((out / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    return result


def cells_of(folder: Path) -> dict[int, dict]:
    """Results of a sweep's cells by the number of the cell's folder.

    A cell that was killed before it wrote anything has a folder and no result, so a cell's place
    among the results is not its number.
    """
    numbers = sorted(int(path.parent.name) for path in folder.glob("*/result.json"))
    return {number: result_of(folder / str(number)) for number in numbers}


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    """What a run exported."""
    return load_file(out / "model" / "model.safetensors")

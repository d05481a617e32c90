"""Disks that are full, files that cannot be read, two commands at once: what a command then says.

Each fault has to end in one line, with nothing half written, and the command has to work once the
fault is mended as the line says: with the numbers and weights of an undisturbed run.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from crash.attempts import Attempt, Kill
from crash.kills import PRELUDE, ROWS, Row, Trials, outcome_of
from crash.outcome import broken, half_written, unequal
from support.families import random_model

LEAST = 2**14  # bytes of a file that a limit cuts: a log is shorter
ROW = {row.title: row for row in ROWS}
DSNOT, LORS = ROW["repair: dsnot"], ROW["repair: lors"]

# root reads what it has no permission for, unless it gives these capabilities up
NO_OVERRIDE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
for name in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    sets[0] &= ~(1 << name)
assert libc.capset(header, sets) == 0
"""
IN_MEMORY = f"""
from transformers import modeling_utils
def unreadable(*arguments, **settings):
    raise OSError({errno.EIO}, "Input/output error")
modeling_utils.safe_open = unreadable
"""
STREAMING = f"""
import os
def unreadable(*arguments, **settings):
    raise OSError({errno.EIO}, "Input/output error")
os.preadv = unreadable
"""


@dataclass
class Ending:
    """How one try of a fault ended.

    said: the error's line, empty where the command went on without.  wrong: what should not be.
    """

    fault: str
    number: int
    said: str = ""
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """A fault, and how to try it; tries: how many."""

    title: str
    provoke: Callable[[Trials, Path, Ending], None]
    tries: int = 1
    possible: Callable[[], bool] = lambda: True

    def ending(self, trials: Trials, number: int) -> Ending:
        ending = Ending(self.title, number)
        folder = trials.fresh(f"fault {FAULTS.index(self)} {number}")
        self.provoke(trials, folder, ending)
        shutil.rmtree(folder)
        return ending


def one_line(attempt: Attempt, folder: Path, ending: Ending) -> None:
    """Note the line of an attempt that failed, and what is wrong with it or left behind."""
    lines = [line for line in attempt.said.splitlines() if line.startswith("error: ")]
    if attempt.code != 1 or len(lines) != 1 or "Traceback" in attempt.said:
        ending.wrong.append(f"code {attempt.code}: {attempt.said[-2000:]}")
    else:
        ending.said = lines[0].removeprefix("error: ").replace(str(folder), "FOLDER")
    # the model is the user's, and broken where that is the fault
    ending.wrong += [f"broken: {n}" for n in broken(folder) if not n.startswith("llama/")]
    ending.wrong += [f"left: {name}" for name in half_written(folder)]


def works(trials: Trials, row: Row, folder: Path, ending: Ending, *more: str) -> None:
    """Note where the next attempt does not end as an undisturbed one."""
    attempt = trials.attempt(row, folder, None, *more)
    if attempt.code != 0:
        ending.wrong.append(f"again {attempt.code}: {attempt.said[-2000:]}")
    else:
        ended(trials, row, folder, ending, *more)


def ended(trials: Trials, row: Row, folder: Path, ending: Ending, *more: str) -> None:
    """Note where an attempt that ended well left something else than an undisturbed one."""
    different = unequal(trials.undisturbed(row)[1], outcome_of(row, folder))
    moved = {"result.json config_hash"} if more else set()  # of another model.path
    ending.wrong += [f"differs: {name}" for name in different if name not in moved]
    ending.wrong += [f"left: {name}" for name in half_written(folder)]


# Full disks


def full_file(trials: Trials, folder: Path, ending: Ending) -> None:
    """From a random stage on no file can grow beyond a random size."""
    whole = trials.undisturbed(LORS)[0]
    random = Random(f"{trials.seed} full {ending.number}")
    moved = random.choice([move for move in whole.moves if move.size > LEAST])
    kill = Kill("full", random.randrange(LEAST, moved.size), moved.mark)
    attempt = trials.attempt(LORS, folder, kill)
    if attempt.code != 0:  # what lies in stages/ is done without
        one_line(attempt, folder, ending)
        works(trials, LORS, folder, ending)


def full_disk(trials: Trials, folder: Path, ending: Ending) -> None:
    """A disk of random size, made larger after it was full."""
    whole = trials.undisturbed(LORS)[0]
    random = Random(f"{trials.seed} disk {ending.number}")
    most = sum(move.size for move in whole.moves) // 2**10 // 3
    with disk(folder / "disk", random.randrange(8, most)) as place:
        attempt = trials.attempt(LORS, place)
        if attempt.code != 0:
            one_line(attempt, place, ending)
            subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
            works(trials, LORS, place, ending)


@contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A disk of so many KiB at `place`."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def may_mount() -> bool:
    """Whether this process may make a disk."""
    try:
        subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


# Files of the user


def sharded(folder: Path) -> Path:
    """A model in several files, the workspace's; the path of the second one."""
    random_model("llama").save_pretrained(folder / "llama", max_shard_size="50KB")
    return sorted((folder / "llama").glob("*.safetensors"))[1]


def forbidden(trials: Trials, folder: Path, ending: Ending) -> None:
    shard, model = sharded(folder), f"model.path={folder / 'llama'}"
    shard.chmod(0)
    prelude = NO_OVERRIDE if os.geteuid() == 0 else ""
    one_line(trials.attempt(DSNOT, folder, None, model, prelude=prelude), folder, ending)
    shard.chmod(0o644)
    works(trials, DSNOT, folder, ending, model)


def unreadable(*more: str, prelude: str) -> Callable[[Trials, Path, Ending], None]:
    """A model whose tensors fail to be read, once."""

    def provoke(trials: Trials, folder: Path, ending: Ending) -> None:
        attempt = trials.attempt(DSNOT, folder, None, *more, prelude=prelude)
        one_line(attempt, folder, ending)
        works(trials, DSNOT, folder, ending, *more)

    return provoke


def short(trials: Trials, folder: Path, ending: Ending) -> None:
    shard, model = sharded(folder), f"model.path={folder / 'llama'}"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    one_line(trials.attempt(DSNOT, folder, None, model), folder, ending)
    shard.write_bytes(data)
    works(trials, DSNOT, folder, ending, model)


# Files of an earlier attempt


def cut(pattern: str, row: Row, share: float) -> Callable[[Trials, Path, Ending], None]:
    """Half of each file of `pattern` is lost, after a kill at this share of the block calls."""

    def provoke(trials: Trials, folder: Path, ending: Ending) -> None:
        whole = trials.undisturbed(row)[0]
        killed = trials.attempt(row, folder, Kill("passes", int(share * whole.passes)))
        paths = sorted(folder.glob(pattern))
        if not killed.killed or not paths:
            ending.wrong.append(f"no {pattern} is there: {killed.said[-2000:]}")
            return
        for path in paths:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
        attempt = trials.attempt(row, folder)
        if attempt.code != 0:  # else it has said what it does anew
            one_line(attempt, folder, ending)
            ending.wrong = [w for w in ending.wrong if not w.startswith("broken: ")]  # we did it
            for path in paths:
                if str(path.relative_to(folder)) not in ending.said:
                    ending.wrong.append(f"{path} is not named")
                whole = f"remove FOLDER/{path.parent.relative_to(folder)}," in ending.said
                shutil.rmtree(path.parent) if whole else path.unlink()  # as the line says
            works(trials, row, folder, ending)
        else:
            ended(trials, row, folder, ending)

    return provoke


# Two commands at once


def one_cache(trials: Trials, folder: Path, ending: Ending) -> None:
    """Two runs with one cache, which both end; the second waits for what the first computes."""
    cache = ["cache=always", f"cache.dir={folder / 'cache'}"]
    outs = [folder / "first", folder / "second"]
    for out in outs:
        out.mkdir()
    asked = [(trials.command(DSNOT, out, *cache), None, PRELUDE) for out in outs]
    for out, attempt in zip(outs, trials.start.together(asked, folder), strict=True):
        if attempt.code != 0:
            ending.wrong.append(attempt.said[-2000:])
            continue
        different = unequal(trials.undisturbed(DSNOT)[1], outcome_of(DSNOT, out))
        ending.wrong += [f"{out.name} differs: {n}" for n in different if "config_hash" not in n]
    pruned = [path.name for path in (folder / "cache" / "pruned").iterdir()]
    if len(pruned) != 2:  # the entry and its lock
        ending.wrong.append(f"the cache has {pruned}")
    ending.wrong += [f"left: {name}" for name in half_written(folder)]


HELD = """
import pathlib, time
from sparsemend.run import run
load = run.load
def held(job):
    while not pathlib.Path("second").exists():
        time.sleep(0.01)
    return load(job)
run.load = held
"""
SECOND = """
import pathlib, time
from sparsemend.cli import main as cli
while not pathlib.Path("out/result.json").exists():
    time.sleep(0.01)
main = cli.main
def told():
    try:
        main()
    finally:
        pathlib.Path("second").touch()
cli.main = told
"""


def one_folder(*resume: str) -> Callable[[Trials, Path, Ending], None]:
    """A second command in the folder of a run, which waits for its end before it loads a model."""

    def provoke(trials: Trials, folder: Path, ending: Ending) -> None:
        command = trials.command(DSNOT, folder)
        asked = [
            (command, None, f"{PRELUDE}{HELD}"),
            ([*command, *resume], None, f"{PRELUDE}{SECOND}"),
        ]
        first, second = trials.start.together(asked, folder)
        one_line(second, folder, ending)
        if first.code != 0:
            ending.wrong.append(f"the first: {first.said[-2000:]}")
            return
        different = unequal(trials.undisturbed(DSNOT)[1], outcome_of(DSNOT, folder))
        ending.wrong += [f"differs: {name}" for name in different]

    return provoke


ATTEMPT = "half of an earlier attempt's "
FAULTS = (
    Fault("no file grows beyond a random size", full_file, tries=20),
    Fault("a disk of random size is full", full_disk, tries=20, possible=may_mount),
    Fault("a shard without permission", forbidden),
    Fault("a shard that is cut short", short),
    Fault("shards that the disk cannot read", unreadable(prelude=IN_MEMORY)),
    Fault(
        "shards that the disk cannot read, streamed",
        unreadable("hardware.stream=true", prelude=STREAMING),
    ),
    Fault(f"{ATTEMPT}measurements", cut("out/stages/metrics/*/content.json", DSNOT, 0.9)),
    Fault(f"{ATTEMPT}pruned model", cut("out/stages/pruned/*/tensors.safetensors", DSNOT, 0.9)),
    Fault(f"{ATTEMPT}measured windows", cut("out/stages/begun/*.safetensors", DSNOT, 0.12)),
    Fault(f"{ATTEMPT}last checkpoint", cut("out/checkpoints/last.ckpt", LORS, 0.8)),
    Fault(f"{ATTEMPT}best checkpoint", cut("out/checkpoints/best.ckpt", LORS, 0.8)),
    Fault(f"{ATTEMPT}rounds", cut("out/repair/rounds.pt", ROW["repair: losa"], 0.5)),
    Fault(
        f"{ATTEMPT}checkpoint in a round",
        cut("out/checkpoints/last.ckpt", ROW["repair: losa"], 0.5),
    ),
    Fault(
        f"{ATTEMPT}block",
        cut("out/repair/block_0.safetensors", ROW["repair: reconstruct"], 0.8),
    ),
    Fault(f"{ATTEMPT}result.json", cut("out/result.json", DSNOT, 0.9)),
    Fault(f"{ATTEMPT}sweep.json", cut("multirun/default/*/sweep.json", ROW["sweep"], 0.7)),
    Fault(f"{ATTEMPT}search.db", cut("multirun/*/*/search.db", ROW["search"], 0.7)),
    Fault("two runs on one cache", one_cache),
    Fault("two runs in one folder, resume=auto", one_folder()),
    Fault("two runs in one folder, resume=null", one_folder("resume=null")),
)


def titled(titles: Sequence[str]) -> list[Fault]:
    return [fault for fault in FAULTS if fault.title in titles]

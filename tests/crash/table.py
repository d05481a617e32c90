"""Write the tables of kills and faults: `PYTHONPATH=tests python -m crash.table`, two hours.

Every trial is kept in a file as it ends, so that a table that was stopped goes on where it was;
remove the folder to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from crash.attempts import starter
from crash.faults import FAULTS, Ending, Fault
from crash.kills import ROWS, Row, Trial, Trials, available

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "multirun" / "reference" / "crash.md"
KEEP = REPOSITORY / "multirun" / "crash"
TRIALS, ENDINGS = "trials.jsonl", "faults.jsonl"
KILLS = 20  # per row
WORKSPACE = re.compile(r"\S*/workspace(?=/)")  # the folder of the model and the tokens
TEXT = """# Kills

Every stage of a run, killed at random places at least {least} times, and gone on with by the same
command with `resume=auto`: numbers, supports and weights have the bits of a run that nobody killed,
no file under its final name is half written after a kill, and no temporary file is left at the end.
{sound} of {trials} such trials ended so; {kills} kills in all, since a quarter of the trials are
killed twice.

| stage | kills in it | ended bit-equal | done again, at most | of | what a kill leaves |
|---|---:|---:|---:|---:|---|
{rows}

* A kill comes before a random file is touched, before a random call of a decoder block, in the
  middle of a random file that is being written, or after random processor seconds, each in a
  quarter of the trials.  All are drawn from a seed.
* **done again**: calls of decoder blocks, beyond those by which every start checks the model that
  it has loaded; **of**: those of the stage.
* A random LLaMA of three blocks, windows of 32 tokens.  A measurement keeps its windows every half
  minute; here it keeps each, since all of it takes a second.

## Faults

What a command says when a disk is full, a file cannot be read, or two run at once.  After each of
these nothing is half written, no traceback is shown, and the next attempt, after what the line asks
for, ends with the bits of an undisturbed run.

| fault | tries | as it should be | what it said |
|---|---:|---:|---|
{faults}

A library's words in brackets are left out.

Made by `PYTHONPATH=tests python -m crash.table` on {machine}.
"""


class Kept:
    """The trials and the endings of faults so far, each kind in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials = [Trial(**content) for content in self._read(TRIALS)]
        self.endings = [Ending(**content) for content in self._read(ENDINGS)]

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def of(self, row: Row) -> list[Trial]:
        return [trial for trial in self.trials if trial.row == row.title]

    def endings_of(self, fault: Fault) -> list[Ending]:
        return [ending for ending in self.endings if ending.fault == fault.title]

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._write(TRIALS, trial)

    def add_ending(self, ending: Ending) -> None:
        self.endings.append(ending)
        self._write(ENDINGS, ending)

    def _write(self, name: str, entry: Trial | Ending) -> None:
        with (self.folder / name).open("a") as file:
            file.write(f"{json.dumps(asdict(entry))}\n")


def measure(trials: Trials, kept: Kept, row: Row, kills: int) -> Iterator[Trial]:
    """Trials of a row until so many have hit its stage."""
    while sum(trial.hit(row) for trial in kept.of(row)) < kills:
        trial = trials.trial(row, len(kept.of(row)))
        kept.add(trial)
        yield trial


def provoke(trials: Trials, kept: Kept, fault: Fault) -> Iterator[Ending]:
    """The tries of a fault that are still missing."""
    for number in range(len(kept.endings_of(fault)), fault.tries if fault.possible() else 0):
        ending = fault.ending(trials, number)
        kept.add_ending(ending)
        yield ending


def page(kept: Kept, rows: Sequence[Row]) -> str:
    """The whole page, of the rows that have a trial."""
    hits = {row: [t for t in kept.of(row) if t.hit(row)] for row in rows}
    measured = [trial for trials in hits.values() for trial in trials]
    return TEXT.format(
        least=min(map(len, filter(None, hits.values())), default=0),
        sound=sum(trial.sound for trial in measured),
        trials=len(measured),
        kills=sum(len(trial.kills) for trial in measured),
        rows="\n".join(line(row, trials) for row, trials in hits.items() if trials),
        faults="\n".join(fault_line(f, kept.endings_of(f)) for f in FAULTS if kept.endings_of(f)),
        machine=machine(),
    )


def fault_line(fault: Fault, endings: Sequence[Ending]) -> str:
    """One line of the faults' table, with the lines that were said, a kind once."""
    sound = sum(not ending.wrong for ending in endings)
    said = {plain(e.said) or "it went on, and did again what was lost" for e in endings}
    if fault.title == "two runs on one cache":
        said = {"both ended; the second waited for what the first computed"}
    cells = [fault.title, len(endings), f"{sound} of {len(endings)}", "; ".join(sorted(said))]
    line = f"| {' | '.join(map(str, cells))} |"
    return WORKSPACE.sub("FOLDER", line)


def plain(said: str) -> str:
    """A line without what a library says, a time or a number of a process."""
    said = re.sub(r" \(.*\)|: DatabaseError.*\)", "", said)
    said = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+", "...", said)
    return re.sub(r"on \S+, process \d+", "on HOST, process N", re.sub(r"\d+ KiB", "N KiB", said))


def line(row: Row, trials: Sequence[Trial]) -> str:
    """One line of the table.  What is done again is told of trials with one kill."""
    sound = sum(trial.sound for trial in trials)
    again = max((t.again for t in trials if len(t.kills) == 1), default=0)
    cells = [row.title, len(trials), f"{sound} of {len(trials)}", again, trials[0].of, row.kept]
    return f"| {' | '.join(map(str, cells))} |"


def machine() -> str:
    import torch
    import transformers

    names = [f"Linux, {platform.machine()}" if platform.system() == "Linux" else platform.system()]
    names += [f"{os.cpu_count()} processor threads", f"Python {platform.python_version()}"]
    names += [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    return ", ".join(names)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("crash.table", description="Kill every stage many times.")
    titles = [row.title for row in ROWS]
    parser.add_argument("--only", nargs="*", default=titles, choices=titles, help="rows by title")
    parser.add_argument("--no-faults", dest="faults", action="store_false", help="kills alone")
    parser.add_argument("--kills", type=int, default=KILLS, help="in every row")
    parser.add_argument("--keep", type=Path, default=KEEP, help="the folder to work and go on in")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    asked = parser.parse_args(arguments)
    asked.keep.mkdir(parents=True, exist_ok=True)
    kept = Kept(asked.keep)
    with starter() as start:
        trials = Trials(start, asked.keep)
        for row in available(asked.only):
            for trial in measure(trials, kept, row, asked.kills):
                state = "sound" if trial.sound else asdict(trial)
                print(trial.row, trial.number, trial.kills, trial.again, state, flush=True)
            asked.to.write_text(page(kept, ROWS), encoding="utf-8")
        for fault in FAULTS if asked.faults else ():
            for ending in provoke(trials, kept, fault):
                print(ending.fault, ending.number, ending.said, ending.wrong, flush=True)
            asked.to.write_text(page(kept, ROWS), encoding="utf-8")


if __name__ == "__main__":
    main()

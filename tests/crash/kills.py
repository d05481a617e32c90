"""Kill a command at a random place, start it again to its end, compare with an undisturbed run.

A row of the table is a stage of a command; a trial of it is one kill in that stage, now and then a
second one in an attempt that goes on.  Both are drawn from a generator that the row's title and the
trial's number seed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from crash.attempts import END, START, Attempt, Kill, Starter
from crash.outcome import broken, half_written, outcome, unequal
from support.command_runs import files, put_workspace
from support.configs import compose

# every batch of a measurement is kept, not those of every half minute
PRELUDE = "from sparsemend.run import unfinished; unfinished.EVERY = 0.0"
SECOND = 0.25  # share of trials with a second kill
MOST = 6  # attempts of a trial

RUN = (
    "pruner=wanda",
    "sparsity=0.6",
    "export=true",
    "hardware.threads=1",
    "hardware.evaluation_batch=1",
    "resume=auto",
)
FIT = ("method.max_steps=20", "method.checkpoint_every=4", "method.validate_every=10")
ROUNDS = ("method.update_interval=6", "method.accumulation_steps=2", "method.budget.density=0.05")
SET = ("method.mask_update=set", "method.update_interval=6")
LOSA = ("method.similarity_samples=6", "method.max_steps=50")
DSNOT = ("method=dsnot",)
RECONSTRUCT = ("method.windows_per_step=2", "method.epochs=5")
CELLS = ("-m", "method=none,dsnot", "sparsity=0.5,0.7")
SEARCH = (
    "-m",
    "+search=atp_common_difference",
    "search.count=3",
    "sparsity=0.7",
    "statistics=dense",
)
STREAMED = "hardware.stream=true"
ALL: tuple[str, ...] = ()  # stages of a command that has no stages of its own


@dataclass(frozen=True)
class Row:
    """A stage of a command.

    overrides: the command, after RUN.  stages: the names of the stages that are killed, ALL for
    any time at all.  kept: what survives a kill, in the reader's words.  most: calls of
    decoder blocks that are made again at most after one kill, None for all of the stage.
    """

    title: str
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    kept: str
    most: int | None

    @property
    def sweep(self) -> bool:
        return "-m" in self.overrides


def repair(method: str, *overrides: str, kept: str, most: int | None) -> Row:
    return Row(f"repair: {method}", (f"method={method}", *overrides), ("repair",), kept, most)


BY_STEPS = "the last checkpoint, here every 4 steps"
# block calls of DSnoT, of which a kill leaves nothing until the run has ended, and one of few
# tokens that tells what a block returns
REPAIR = 53
STEPS = 15  # block calls of four steps and of a validation
ROWS = (
    Row("load", DSNOT, (START, "load"), "nothing", None),
    Row("prune in memory", DSNOT, ("prune",), "nothing of it", None),
    # the block under way, and what the walk needs to come to it
    Row("prune streamed", (*DSNOT, STREAMED), ("prune",), "finished blocks", 40),
    repair("masked_lora", "method.rank=2", *FIT, kept=BY_STEPS, most=STEPS),
    # and of the start, which every attempt makes
    repair("lors", "method.rank=2", *FIT, kept=BY_STEPS, most=STEPS + 6),
    repair("masked_full", *FIT, *SET, kept=BY_STEPS, most=STEPS),
    repair("seft", *FIT, *ROUNDS, kept=BY_STEPS, most=STEPS),
    repair("spiel", *FIT, *ROUNDS, kept=BY_STEPS, most=STEPS),
    repair("losa", *FIT, *LOSA, kept="half rounds, in training the last checkpoint", most=120),
    repair("dsnot", kept="nothing of it", most=None),
    repair("reconstruct", *RECONSTRUCT, kept="finished blocks", most=50),
    Row(
        "evaluation",
        DSNOT,
        ("evaluate",),
        "measured batches, here each; no repair by dsnot",
        3 + REPAIR,
    ),
    Row("export", DSNOT, ("export", END), "nothing of it, nor of a repair by dsnot", REPAIR),
    Row("sweep", CELLS, ALL, "finished cells, and finished stages of the one under way", None),
    Row("search", SEARCH, ALL, "finished trials", None),
)


@dataclass
class Trial:
    """The outcome of one trial.

    kills: [stage, by, at] of each.  attempts: how many until the end.  unequal: where the end
    differs from an undisturbed one.  broken: files that a kill left unreadable under their final
    names.  left: temporary files that were there at the end.  again: block calls that were made
    more often than undisturbed, less those that check the model after every load; of: those of
    the stage, undisturbed.
    """

    row: str
    number: int
    kills: list[list[Any]] = field(default_factory=list)
    attempts: int = 0
    unequal: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    again: int = 0
    of: int = 0
    said: str = ""  # of an attempt that failed

    @property
    def sound(self) -> bool:
        return not (self.unequal or self.broken or self.left or self.said)

    def hit(self, row: Row) -> bool:
        """Whether the first kill fell into the row's stage, and not a moment later."""
        return bool(self.kills) and (not row.stages or self.kills[0][0] in row.stages)


class Trials:
    """Trials of rows, each in a folder of its own under `folder`."""

    def __init__(self, start: Starter, folder: Path, *, seed: int = 0) -> None:
        self.start, self.folder, self.seed = start, folder, seed
        self.workspace = folder / "workspace"
        if not (self.workspace / "test.safetensors").exists():
            shutil.rmtree(self.workspace, ignore_errors=True)
            self.workspace.mkdir(parents=True)
            put_workspace(self.workspace)
        self._undisturbed: dict[tuple[str, ...], tuple[Attempt, dict[str, Any]]] = {}

    def undisturbed(self, row: Row) -> tuple[Attempt, dict[str, Any]]:
        """The attempt that nothing kills, and what it leaves; made once per command."""
        if row.overrides not in self._undisturbed:
            folder = self.fresh(f"undisturbed {row.title}")
            attempt = self.attempt(row, folder, None)
            assert attempt.code == 0, attempt.said
            self._undisturbed[row.overrides] = attempt, outcome_of(row, folder)
            shutil.rmtree(folder)
        return self._undisturbed[row.overrides]

    def trial(self, row: Row, number: int, *, kill: Kill | None = None) -> Trial:
        """Kill the row's command once or twice (or at `kill`), and go on to its end."""
        whole, expected = self.undisturbed(row)
        random = Random(f"{self.seed} {row.title} {number}")
        first = kill or draw(random, whole, row.stages or stages_of(whole))
        second = kill is None and random.random() < SECOND
        then = draw(random, whole, stages_of(whole)) if second else None
        trial = Trial(row.title, number)
        folder, attempts = self.fresh(f"{row.title} {number}"), []
        for at in [first, then, *[None] * MOST]:
            if attempts and at is None and attempts[-1].code == 0:
                break
            attempt = self.attempt(row, folder, at)
            attempts.append(attempt)
            if attempt.killed and at is not None:
                trial.kills.append([attempt.stage, at.by, at.at])
                trial.broken += broken(folder)
            elif attempt.code != 0:
                trial.said = attempt.said
                break
            else:
                break
        trial.attempts = len(attempts)
        if not trial.said:
            try:
                trial.unequal = unequal(expected, outcome_of(row, folder))
            except (OSError, ValueError) as error:  # no result is where it should be
                trial.said = repr(error)
            trial.left = half_written(folder)
            first_load = whole.spans("passes", ("load",))[0]
            checks = int(first_load[1] - first_load[0]) if "load" not in row.stages else 0
            again = sum(a.passes for a in attempts) - whole.passes - checks * len(trial.kills)
            trial.again = max(0, again)
            trial.of = whole.passes_in(row.stages or stages_of(whole))
            shutil.rmtree(folder)
        return trial

    def attempt(
        self, row: Row, folder: Path, kill: Kill | None = None, *more: str, prelude: str = ""
    ) -> Attempt:
        """The row's command, with more overrides, in `folder`."""
        lines = self.command(row, folder, *more)
        return self.start(lines, folder, kill=kill, prelude=f"{PRELUDE}\n{prelude}")

    def command(self, row: Row, folder: Path, *more: str) -> list[str]:
        place = [] if row.sweep else [f"hydra.run.dir={folder / 'out'}"]
        return [*files(self.workspace), *RUN, *place, *row.overrides, *more]

    def fresh(self, name: str) -> Path:
        folder = self.folder / name.replace(":", "").replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def stages_of(whole: Attempt) -> tuple[str, ...]:
    return tuple(dict.fromkeys(mark.stage for mark in whole.marks))


def draw(random: Random, whole: Attempt, stages: Sequence[str], *, clock: bool = True) -> Kill:
    """A random place of an attempt, inside `stages`, by each of the four measures alike.

    clock: processor seconds are one of them.
    """
    choices: list[Callable[[], Kill]] = []
    for by in ("files", "passes"):
        if spans := whole.spans(by, stages):
            places = [n + 1 for first, end in spans for n in range(int(first), int(end))]
            choices.append(lambda by=by, places=places: Kill(by, random.choice(places)))
    if clock and (spans := whole.spans("seconds", stages)):
        lengths = [end - first for first, end in spans]

        def second() -> Kill:
            first, end = random.choices(spans, lengths)[0]
            return Kill("seconds", random.uniform(first, end))

        choices.append(second)
    if moves := whole.written_in(stages):

        def byte() -> Kill:
            moved = random.choice(moves)
            return Kill("bytes", random.randrange(1, moved.size), moved.mark)

        choices.append(byte)
    return random.choice(choices)()


def outcome_of(row: Row, folder: Path) -> dict[str, Any]:
    """What a finished command left: a run, cells by number, or a search's trials by value."""
    if not row.sweep:
        return outcome(folder / "out")
    sweeps = [path for path in folder.rglob("sweep.json") if '"finished"' in path.read_text()]
    if len(sweeps) != 1:
        raise ValueError(f"{len(sweeps)} sweeps are finished in {folder}")
    facts: dict[str, Any] = {}
    for path in sorted(sweeps[0].parent.glob("*/result.json")):
        cell = path.parent
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["status"] == "finished":
            key = cell.name
            if "search" in row.title:
                value = content["config"]["sparsity_schedule"]["common_difference"]
                key = f"{value} {content['config']['statistics']}"
            facts |= {f"{key}: {name}": fact for name, fact in outcome(cell).items()}
    return facts


def available(titles: Collection[str]) -> list[Row]:
    """The rows of these titles whose keys conf/ has."""
    hardware = compose("run", []).hardware
    there = [row for row in ROWS if STREAMED not in row.overrides or "stream" in hardware]
    return [row for row in there if row.title in titles]

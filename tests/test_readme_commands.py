"""Every page and its commands: composed by a fast test, run as a reader would by slow ones.

`pytest -m commands` runs them, one test a block.  The commands of a block share an empty folder
that stands for the reader's own, and find there what they name in capitals.  Those that would take
minutes get the overrides of SHORTER; those that need a GPU, a hub or a cluster are composed as
written and then run on the embedded model and this machine, see `substituted`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.reader_folder import execute, put_placeholders
from support.readme_blocks import FENCE, Block, Command, blocks, commands
from support.tiers import slow_but_for

from sparsemend.config.compose import compose_command, expand
from sparsemend.table.listing import command_of

ROOT = Path(__file__).parents[1]
WHERE = (  # not all of the tree: exported models in run folders have a README.md too
    *("README.md", "conf/**/README.md", "docker/**/README.md", "src/**/README.md"),
    *("tests/**/README.md", "multirun/README.md", "multirun/reference/**/README.md"),
)
RUNS = "multirun/reference/runs"  # of the reference tables, ignored by git
FOUND = (path.relative_to(ROOT).as_posix() for path in chain(*map(ROOT.glob, WHERE)))
PAGES = sorted(page for page in FOUND if not page.startswith(RUNS))
LONGEST = 10_000  # bytes of a page, a few screens
BLOCKS = [block for page in PAGES for block in blocks(page, (ROOT / page).read_text("utf-8"))]
EVERY = (command for block in BLOCKS if block.runnable for command in commands(block))
COMMANDS = list({str(command): command for command in EVERY}.values())  # each once
CONFIGS = {"sparsemend": "run", "sparsemend-bench": "bench"}  # the Hydra apps

# 40 short windows of random tokens: what a sweep or a search does with its cells stays the same
FEW_TOKENS = (
    "data=tokens",
    *(f"data.{key}={key.upper()}.safetensors" for key in ("calibration", "train", "test")),
    "data.seqlen=64",
    "data.calibration_samples=16",
)
THREE_STEPS = ("method.max_steps=3",)
TWO_ROUNDS = ("method.rounds=2", "method.max_steps=2", "method.similarity_samples=16")  # LoSA
TWO_ROWS = ("arena=none,lors", "seed=0", "arena.steps=5", "arena.items=2")
SMALL_SHAPE = ("shape.hidden=128", "shape.intermediate=256", "rounds=1")
# how a command begins: what is added to it, so that all of them end within twenty minutes
SHORTER: dict[str, tuple[str, ...]] = {
    "sparsemend -m experiment=dsnot/table1": FEW_TOKENS,
    "sparsemend -m experiment=wanda/readme": FEW_TOKENS,
    "sparsemend -m experiment=atp/headline": FEW_TOKENS,
    "sparsemend -m experiment=tiny_comparison": (*FEW_TOKENS, *THREE_STEPS),
    "sparsemend -m experiment=tiny_seft": (*FEW_TOKENS, "method.max_steps=12"),  # one round
    "sparsemend -m experiment=seft_control": (
        *FEW_TOKENS,
        *("method.max_steps=12", "hydra.sweeper.choose.points=[1e-2]", "seed=0,1"),
    ),
    "sparsemend -m experiment=tiny_losa": (*FEW_TOKENS, *TWO_ROUNDS),
    "sparsemend -m experiment=tiny_reconstruct": FEW_TOKENS,
    "sparsemend -m experiment=claims/dsnot": ("sparsity=0.6", "pruner=wanda", "seed=0"),
    "sparsemend -m experiment=arena": (*FEW_TOKENS, *TWO_ROWS),
    "sparsemend -m method=none,dsnot": FEW_TOKENS,
    "sparsemend -m method=none pruner=": FEW_TOKENS,
    "sparsemend method=none sparsity=": FEW_TOKENS,
    "sparsemend -m +search=": (*FEW_TOKENS, "search.count=3"),
    "sparsemend model=llama2_7b data=c4 hardware=gpu pruner=sparsegpt": THREE_STEPS,
    "sparsemend model=local model.path=DIR model.dtype=float32 model.context_length": THREE_STEPS,
    "sparsemend hardware=ddp": THREE_STEPS,
    "sparsemend experiment=pretrain_tiny": THREE_STEPS,
    "sparsemend data=instructions": THREE_STEPS,
    "sparsemend-bench": SMALL_SHAPE,
    "sparsemend-bench suite=pruning": ("suite.samples=4", "suite.seqlen=64"),
    "sparsemend-bench suite=similarity": ("suite.samples=4", "suite.seqlen=64"),
    "sparsemend-bench suite=search": (*SMALL_SHAPE, "suite.trials=2", "suite.seqlen=64"),
    "sparsemend-bench suite=decode": ("suite.lengths=[1,9]", "suite.context=4"),
    "sparsemend-bench suite=scaling": ("suite.hidden=[64,128]", "suite.seqlen=[32,64]"),
}
# of a command that needs a GPU, a hub or a cluster
DROPPED = ("model=", "data=", "hardware=gpu", "hydra.launcher.partition=", "shape=", "device=")
REPLACED = {
    "hydra/launcher=slurm_1gpu": "hydra/launcher=submitit_local",
    "hardware.accelerator=gpu": "hardware.accelerator=cpu",
    "evaluation.zero_shot.suite=wanda": "evaluation.zero_shot.suite=docs",  # needs no download
    "hardware.devices=4": "hardware.devices=2",
}


def substituted(argv: Sequence[str]) -> list[str]:
    """The command on the embedded model and a few tokens, without a GPU and without a cluster."""
    kept = [REPLACED.get(word, word) for word in argv if not word.startswith(DROPPED)]
    if kept[:2] == ["sparsemend-tables", "run"]:
        return [*kept, "--scale", "tiny", *FEW_TOKENS]
    if kept[0] != "sparsemend":
        return kept
    scale = ["scale=tiny"] if any(word.startswith("experiment=") for word in kept) else []
    return [*kept, *scale, *FEW_TOKENS]


def added(command: Command) -> list[str]:
    """What SHORTER adds to a command."""
    more = (more for start, more in SHORTER.items() if str(command).startswith(start))
    return list(dict.fromkeys(chain(*more)))


def overrides(argv: Sequence[str]) -> list[str]:
    return [word for word in argv[1:] if "=" in word and not word.startswith("-")]


def check_names(argv: Sequence[str], folder: Path) -> None:
    """Compose every job of a Hydra app's command line; raises OverrideError as the app does."""
    extra = folder / argv[argv.index("--config-dir") + 1] if "--config-dir" in argv else None
    compose_command(
        overrides(argv),
        config_name=CONFIGS[argv[0]],
        command=argv[0],
        extra=extra,
        multirun="-m" in argv,
    )


def launched(argv: Sequence[str]) -> Sequence[str] | None:
    """The command line of the Hydra app that a command is or starts; None where it is none."""
    if argv[:3] == ("sparsemend-tables", "run", "--cell"):
        return command_of(argv[3], None, argv[4:])
    return argv if argv[0] in CONFIGS else None


def last_job(argv: Sequence[str]) -> list[str]:
    """A sweep's last job as a command of its own; a command that is no sweep, as it is."""
    if "-m" not in argv:
        return list(argv)
    *_, last = expand(OverridesParser.create().parse_overrides(overrides(argv)))
    return [argv[0], *last]


def put_files(command: Command, folder: Path) -> None:
    """The files that the command's page tells its reader to write."""
    for block in BLOCKS:
        if block.file and block.page == command.block.page:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")


TOGETHER: dict[Block, list[Command]] = {}  # block -> its commands, in the order of the page
for each in COMMANDS:
    TOGETHER.setdefault(each.block, []).append(each)


@pytest.mark.commands
@pytest.mark.parametrize("block", TOGETHER, ids=lambda block: f"{block.page}:{block.line}")
def test_the_commands_of_a_block_run_one_after_the_other(block: Block, tmp_path: Path) -> None:
    for command in TOGETHER[block]:
        run(command, tmp_path)


def run(command: Command, folder: Path) -> None:
    """Run a command as a reader in this folder would, shortened; it must exit 0."""
    argv: Sequence[str] = command.argv
    app = launched(argv)
    if command.block.needs:
        if app is not None:
            execute([*last_job(app), "--cfg", "job"], folder)
        argv = substituted(argv)
    argv = [*argv, *(word for word in added(command) if word not in argv)]
    put_files(command, folder)
    put_placeholders(argv, folder)
    execute(argv, folder, command.environment)


COMPOSED = [command for command in COMMANDS if launched(command.argv)]
FIRST = [command for command in COMPOSED if command.block.page == "README.md"]


@pytest.mark.parametrize("command", slow_but_for(COMPOSED, FIRST), ids=str)
def test_the_command_composes(command: Command, tmp_path: Path) -> None:
    app = launched(command.argv)
    assert app is not None
    put_files(command, tmp_path)
    check_names(app, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_fenced_block_says_what_it_is(page: str) -> None:
    mine = [block for block in BLOCKS if block.page == page]
    assert [f"{page}:{block.line} ```{block.info}" for block in mine if not block.known] == []
    lines = (ROOT / page).read_text("utf-8").splitlines()
    fences = [line for line in lines if line.lstrip().startswith(("```", "~~~"))]
    fenced = [block for block in mine if lines[block.line - 1].startswith("```")]
    assert len(fences) == 2 * len(fenced)


@pytest.mark.parametrize("start", SHORTER)
def test_every_shortened_command_exists(start: str) -> None:
    assert [command for command in COMMANDS if str(command).startswith(start)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page: str) -> None:
    assert len((ROOT / page).read_bytes()) <= LONGEST


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> list[str]:
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+?) *$", prose(page), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def broken(page: Path) -> list[str]:
    """The links and images of a page, but for those to other hosts, that lead nowhere."""
    lost = []
    for link in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link or (target.exists() and not fragment):
            continue
        if not target.is_file() or fragment not in anchors(target):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    assert broken(ROOT / page) == []

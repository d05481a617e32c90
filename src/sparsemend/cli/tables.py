"""The command `sparsemend-tables`: published numbers beside ours, and a page of our results.

    list      every published number, the experiment that repeats it, what it needs
    run       one published number through the ordinary `sparsemend`
    collect   result.json files as a table of a paper's shape
    arena     the runs of experiment=arena as one table and one plot
    report    result folders as one HTML page

Nothing here imports torch.  The exit codes are those of `sparsemend`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sparsemend.cli.command import stopped_in_one_line
from sparsemend.cli.version import ShowVersion
from sparsemend.errors import USER_ERRORS, OverrideError, nearest
from sparsemend.terminal import say

COMMAND = "sparsemend-tables"
COSTS = ("seconds", "peak_bytes", "trained", "tokens")


class Parser(argparse.ArgumentParser):
    """An argument parser with our kind of errors: one line, nearest names, exit code 2."""

    def error(self, message: str) -> NoReturn:
        near = nearest(message.split()[-1], self.options(), most=2)
        raise OverrideError(f"{message}\n{near}`{self.prog} --help` lists what it takes")

    def options(self) -> list[str]:
        """Every option of the parser and of its commands."""
        names: list[str] = []
        for action in self._actions:
            names += action.option_strings
            if isinstance(action.choices, dict):  # the commands
                names += [o for command in action.choices.values() for o in command.options()]
        return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stopped_in_one_line():
            parser, commands = _parser()
            _check_name(words, commands)
            args = parser.parse_args(words)
            args.do(args)
    except OverrideError as error:
        say(str(error))
        sys.exit(2)
    except USER_ERRORS as error:
        say(str(error))
        sys.exit(1)


def _check_name(words: Sequence[str], commands: Sequence[str]) -> None:
    """Raise OverrideError with the nearest names where the first word is not a command."""
    if not words or words[0].startswith("-") or words[0] in commands:
        return
    near = nearest(words[0], commands, most=2)
    raise OverrideError(f"unknown command {words[0]!r}\n{near}all: {', '.join(commands)}")


def _parser() -> tuple[Parser, list[str]]:
    parser = Parser(prog=COMMAND, description="Published numbers beside ours.", allow_abbrev=False)
    parser.add_argument("--version", action=ShowVersion)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    commands: list[str] = []

    def command(name: str, do: Callable[[argparse.Namespace], None], purpose: str) -> Parser:
        commands.append(name)
        subparser: Parser = subparsers.add_parser(
            name, help=purpose, description=purpose, allow_abbrev=False
        )
        subparser.set_defaults(do=do)
        return subparser

    listing = command("list", _list, "every published number and what repeating it needs")
    listing.add_argument("--paper", help="only this paper, for example dsnot")
    listing.add_argument("--summary", action="store_true", help="only the counts per paper")
    running = command("run", _run, "repeat one published number with sparsemend")
    running.add_argument("--cell", required=True, help="an identity as `list` prints it")
    running.add_argument("--scale", help="a member of conf/scale, for example tiny")
    running.add_argument("--dry", action="store_true", help="only print the command")
    running.add_argument("overrides", nargs="*", help="further overrides, as of sparsemend")
    collecting = command("collect", _collect, "result.json files as tables of a paper's shape")
    collecting.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    collecting.add_argument("--metric", default="perplexity/test")
    collecting.add_argument("--where", action="append", default=[], metavar="KEY=VALUE")
    collecting.add_argument("--out", type=Path, help="folder of the files; the first FOLDER")
    arena = command("arena", _arena, "runs of experiment=arena as one table and one plot")
    arena.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    arena.add_argument("--cost", default="seconds", help="of the plot: " + ", ".join(COSTS))
    arena.add_argument("--out", type=Path, help="folder of the files; the first FOLDER")
    claims = command("claims", _claims, "cells of experiment=claims/... as verdicts and pages")
    claims.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    claims.add_argument("--out", type=Path, help="folder of the pages; the first FOLDER")
    claims.add_argument("--keep", type=Path, help="folder that gets a small copy of the cells")
    reporting = command("report", _report, "result folders as one HTML page")
    reporting.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    reporting.add_argument("--out", type=Path, help="the page; report.html in the first FOLDER")
    return parser, commands


def _list(asked: argparse.Namespace) -> None:
    from sparsemend.table.listing import print_listing

    print_listing(asked.paper, summary=asked.summary)


def _run(asked: argparse.Namespace) -> None:
    from sparsemend.table.listing import command_of

    line = command_of(asked.cell, asked.scale, asked.overrides)
    print(shlex.join(line), flush=True)
    if asked.dry:
        return
    from sparsemend.cli import main as cli

    sys.argv = line
    cli.main()


def _collect(asked: argparse.Namespace) -> None:
    from sparsemend.table.collect import collect

    for path in collect(asked.folders, asked.metric, asked.where, asked.out):
        print(path)


def _arena(asked: argparse.Namespace) -> None:
    from sparsemend.sweep.arena.rows import read_arena
    from sparsemend.sweep.arena.table import show, write

    if asked.cost not in COSTS:
        near = nearest(asked.cost, COSTS, most=2)
        raise OverrideError(f"unknown cost {asked.cost!r}\n{near}all: {', '.join(COSTS)}")
    arena = read_arena(asked.folders)
    show(arena)
    for path in write(arena, asked.out or asked.folders[0], asked.cost):
        print(path)


def _claims(asked: argparse.Namespace) -> None:
    from sparsemend.sweep.claims.keep import keep
    from sparsemend.sweep.claims.page import write
    from sparsemend.sweep.claims.read import read_each_claim
    from sparsemend.sweep.claims.verdict_line import verdict_lines

    claims, refused = read_each_claim(asked.folders)
    for line in (line for claim in claims for line in verdict_lines(claim)):
        print(line)
    for path in write(claims, asked.out or asked.folders[0]):
        print(path)
    if asked.keep:
        for path in keep(claims, asked.keep):
            print(path)
    if refused:  # the others have their pages
        raise ValueError("\n".join(refused))


def _report(asked: argparse.Namespace) -> None:
    from sparsemend.table.page.page import report

    print(report(asked.folders, asked.out or asked.folders[0] / "report.html"))


if __name__ == "__main__":
    main()

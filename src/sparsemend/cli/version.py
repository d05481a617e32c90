"""`--version` of every command: this package, its commit, and the libraries numbers depend on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from sparsemend.result.record import provenance


def version(command: str) -> str:
    """Two lines; nothing heavy is imported for them."""
    facts = provenance()
    package, *others = facts.packages.items()
    changed = ", changed" if facts.dirty else ""
    commit = f" (commit {facts.commit[:12]}{changed})" if facts.commit else ""
    libraries = [f"{name} {number or 'not installed'}" for name, number in others]
    return f"{command} {package[1]}{commit}\n" + ", ".join([f"python {facts.python}", *libraries])


def print_version_if_asked(command: str) -> None:
    """Print it and exit where the command line of a Hydra app asks; Hydra would print its own."""
    if "--version" in sys.argv[1:]:
        print(version(command))
        sys.exit(0)


class ShowVersion(argparse.Action):
    """The `--version` of a command that parses its own arguments."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="this package and its libraries")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version(parser.prog))
        parser.exit()

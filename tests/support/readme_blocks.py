"""What a Markdown page asks its reader to type: fenced blocks and inline commands, as argv lists.

The info string of a fence says what the block is:

    ```text                         output or a drawing, never run
    ```bash                         commands that need no network, no GPU and no cluster
    ```bash gpu hub                 commands with NEEDS: composed, and run on the embedded model
    ```bash install                 commands of another tool, see OTHERS: known, not run
    ```python file, ```yaml file    a file of the reader's, named by the comment in its first line
    ```python                       a script, as good as a command

In running text `sparsemend ...` with an argument, inside one pair of backticks, is a command that
needs nothing.  Words in capitals (RUN, TRAIN.safetensors) stand for what the reader has.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

NEEDS = frozenset({"gpu", "hub", "slurm"})  # a CUDA device, a model hub, a cluster
OTHERS = ("bash install", "bash docker", "bash browser")  # pip and venv, images, screenshots
KNOWN = ("text", "bash", *OTHERS, "python", "python file", "yaml file")  # and bash with needs

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^``` *$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(sparsemend[\w-]*\s[^`]+)`")
SHELL = re.compile(r"[$;|<>&]|^\s*(?:for|if|while|do|done)\b")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or an inline command; line: where it begins, from 1."""

    page: str
    line: int
    info: str
    text: str

    @property
    def needs(self) -> frozenset[str]:
        return NEEDS.intersection(self.info.split()[1:])

    @property
    def known(self) -> bool:
        """Whether the info string is one of those above."""
        language, *tags = self.info.split() or [""]
        return self.info in KNOWN or (language == "bash" and NEEDS.issuperset(tags))

    @property
    def runnable(self) -> bool:
        """Whether it holds commands that the tests run."""
        return self.info in ("bash", "python") or bool(self.needs)

    @property
    def file(self) -> Path | None:
        """Where the reader puts this block, by its first line; None where it is no file."""
        if not self.info.endswith(" file"):
            return None
        return Path(self.text.splitlines()[0].removeprefix("#").strip())


@dataclass(frozen=True)
class Command:
    """One command; those of a block share a folder, in their order."""

    block: Block
    environment: tuple[str, ...]  # NAME=value before the command
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(" ".join([*self.environment, *self.argv]).split())


def blocks(page: str, markdown: str) -> list[Block]:
    """The fenced blocks of a page, then its inline commands."""
    fenced = [
        Block(page, _line(markdown, found), found["info"].strip(), found["text"])
        for found in FENCE.finditer(markdown)
    ]
    prose = FENCE.sub(lambda found: "\n" * found[0].count("\n"), markdown)
    inline = [
        Block(page, _line(prose, found), "bash", " ".join(found[1].split()))
        for found in INLINE.finditer(prose)
    ]
    return [*fenced, *inline]


def _line(markdown: str, found: re.Match[str]) -> int:
    return markdown.count("\n", 0, found.start()) + 1


def commands(block: Block) -> Iterator[Command]:
    """The commands of a runnable block; raises ValueError where a line needs a shell."""
    if block.info == "python":
        yield Command(block, (), ("python", "-c", block.text))
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if SHELL.search(re.sub(r"'[^']*'|(^|\s)#.*", "", line)):
            raise ValueError(
                f"{block.page}, block in line {block.line}: {line.strip()!r} needs a shell; write "
                "plain commands, one a line"
            )
        assigned = tuple(takewhile(ASSIGNMENT.match, words))
        if words:
            yield Command(block, assigned, tuple(words[len(assigned) :]))

"""Which blocks and commands a page of Markdown holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.readme_blocks import Block, blocks, commands


def written(text: str, info: str = "bash") -> Iterator[tuple[str, ...]]:
    return (command.argv for command in commands(Block("page", 1, info, text)))


def test_a_block_holds_a_command_a_line_without_its_comments() -> None:
    text = "# both\nsparsemend a=1  # it's one\n\nsparsemend 'b=[1, 2]' c=3\n"
    assert list(written(text)) == [("sparsemend", "a=1"), ("sparsemend", "b=[1, 2]", "c=3")]


def test_a_backslash_continues_a_command() -> None:
    assert list(written("sparsemend a=1 \\\n    b=2\n")) == [("sparsemend", "a=1", "b=2")]


def test_assignments_before_a_command_are_its_environment() -> None:
    (command,) = commands(Block("page", 1, "bash", "PYTHONPATH=mine A=b sparsemend c=d"))
    assert command.environment == ("PYTHONPATH=mine", "A=b")
    assert command.argv == ("sparsemend", "c=d")


@pytest.mark.parametrize("line", ["a && b", "a | b", "a > b", "for x in y; do", "a $B", "B=$C a"])
def test_a_line_that_needs_a_shell_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"page, block in line 1: .* needs a shell"):
        list(written(line))


def test_a_page_gives_its_blocks_and_its_inline_commands() -> None:
    page = "Say `sparsemend a=1\nb=2`, `sparsemend`.\n```bash gpu\nsparsemend `x` c\n```\n"
    fenced, inline = blocks("page", page)
    assert (fenced.line, fenced.info, fenced.needs) == (3, "bash gpu", {"gpu"})
    assert (inline.line, inline.info, inline.text) == (1, "bash", "sparsemend a=1 b=2")


@pytest.mark.parametrize("info", ["", "bash gqu", "bash install gpu", "python gpu", "sh"])
def test_an_unknown_info_string_is_not_known(info: str) -> None:
    assert not Block("page", 1, info, "").known


def test_a_file_block_names_its_path_in_its_first_line() -> None:
    assert Block("page", 1, "yaml file", "# mine/a.yaml\nb: 1\n").file == Path("mine/a.yaml")
    assert Block("page", 1, "python", "# mine/a.py\n").file is None

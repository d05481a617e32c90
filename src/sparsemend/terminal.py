"""What a terminal shows: tables, errors, and progress bars, which a log file does without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")

# columns of a log file, which has no width of its own
RUN_WIDTH = 100
CELLS_WIDTH = 120
ARENA_WIDTH = 180


def console(width: int) -> Console:
    """The terminal, or `width` columns of a log file."""
    here = Console()
    return here if here.is_terminal else Console(width=width)


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Iterate with a transient rich bar when stderr is a terminal."""
    errors = Console(stderr=True)
    return iter(
        rich_track(items, what, console=errors, transient=True, disable=not errors.is_terminal)
    )


def say(message: str) -> None:
    """Print `error: message` in red on the error stream, never wrapped."""
    Console(stderr=True, soft_wrap=True).print(
        f"error: {message}", style="bold red", highlight=False, markup=False
    )

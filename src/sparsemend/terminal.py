"""Progress bars on a terminal, silence elsewhere (log lines report there)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Iterate with a transient rich bar when stderr is a terminal."""
    console = Console(stderr=True)
    return iter(
        rich_track(items, what, console=console, transient=True, disable=not console.is_terminal)
    )


def say(message: str) -> None:
    """Print `error: message` in red on the error stream, never wrapped."""
    Console(stderr=True, soft_wrap=True).print(
        f"error: {message}", style="bold red", highlight=False, markup=False
    )

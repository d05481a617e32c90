"""What a terminal shows: tables, errors, and progress bars, which become lines in a log file."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import ClassVar, TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")

log = logging.getLogger(__name__)

SILENCE = 30.0  # seconds

# columns of a log file, which has no width of its own
RUN_WIDTH = 100
CELLS_WIDTH = 120
ARENA_WIDTH = 180


def console(width: int) -> Console:
    """The terminal, or `width` columns of a log file."""
    here = Console()
    return here if here.is_terminal else Console(width=width)


class StageLines:
    """Says how far a long stage is where no terminal shows a bar.

    A line is due SILENCE seconds after the last one of any stage, so that a stage inside another
    does not say it twice.
    """

    latest: ClassVar[float | None] = None  # when a stage last had a line, on the monotonic clock

    def __init__(
        self, what: str, total: int, *, tokens: int = 0, first: int = 0, ran: float = 0.0
    ) -> None:
        """total: of whatever is counted.  tokens: of those from `first` on, 0 to leave them out.

        ran: seconds that the stage has taken already.
        """
        self.what, self.total, self.tokens, self.first = what, total, tokens, first
        now = monotonic()
        self.started = now - ran
        self.silent = Console(stderr=True).is_terminal
        if StageLines.latest is None:
            StageLines.latest = now

    def tick(self, done: int) -> None:
        """Log a line if one is due.  done: how many of the total."""
        now = monotonic()
        if self.silent or (StageLines.latest is not None and now - StageLines.latest < SILENCE):
            return
        StageLines.latest = now
        log.info("%s", self.line(done, now - self.started))

    def line(self, done: int, seconds: float) -> str:
        """The stage, done of total, tokens per second and time left; `seconds` since the first."""
        parts = [f"{self.what} {done}/{self.total}"]
        share = (done - self.first) / max(self.total - self.first, 1)
        if share > 0 and seconds > 0:
            parts += [f"{self.tokens * share / seconds:,.0f} tokens/s"] if self.tokens else []
            parts.append(f"{duration(seconds / share * (1 - share))} left")
        return "  ".join(parts)


class BarLines(io.StringIO):
    """Takes a library's progress bars (tqdm's) for a stderr, and says what they show as lines."""

    BAR = re.compile(r"([^\r\n]*?):?\s*\d+%\|[^|]*\|\s*(\d+)/(\d+)")

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.lines: StageLines | None = None

    def write(self, text: str) -> int:
        for what, done, total in self.BAR.findall(text):
            name = f"{self.stage}: {what.strip()}".rstrip(": ")
            if self.lines is None or (self.lines.what, self.lines.total) != (name, int(total)):
                self.lines = StageLines(name, int(total), first=int(done))
            self.lines.tick(int(done))
        return len(text)


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def track(
    items: Sequence[Item], what: str, *, tokens: int = 0, total: int | None = None
) -> Iterator[Item]:
    """Iterate with a transient rich bar when stderr is a terminal, else with lines.

    tokens: of all items together, 0 to leave them out.  total: of a stage of which `items` are the
    last ones.
    """
    errors = Console(stderr=True)
    total = len(items) if total is None else total
    first = total - len(items)
    if errors.is_terminal:
        yield from rich_track(
            items, what, total=total, completed=first, console=errors, transient=True
        )
        return
    yield from with_lines(items, what, tokens=tokens, first=first)


def with_lines(
    items: Sequence[Item], what: str, *, tokens: int = 0, first: int = 0
) -> Iterator[Item]:
    """Iterate with lines when stderr is no terminal, and with nothing when it is one.

    first: how many items of the stage came before these.
    """
    lines = StageLines(what, first + len(items), tokens=tokens, first=first)
    for done, item in enumerate(items, start=first + 1):
        yield item
        lines.tick(done)


def say(message: str) -> None:
    """Print `error: message` in red on the error stream, never wrapped."""
    Console(stderr=True, soft_wrap=True).print(
        f"error: {message}", style="bold red", highlight=False, markup=False
    )


def note(message: str) -> None:
    """Print a line on the error stream, never wrapped, where no log is set up yet."""
    Console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)


class LogFile(logging.FileHandler):
    """A log file that loses lines where its disk is full, and says so once.

    logging's own handler would print a traceback for every line of the run, or end it.
    """

    full = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it could not even be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.full:
            self.full = True
            note(f"{self.baseFilename} takes no more lines: {error}")

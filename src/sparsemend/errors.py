"""Errors that a command answers with one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class OverrideError(Exception):
    """An override that names something that does not exist."""


# answered in one line; anything else is a bug and shows where
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def nearest(
    name: str,
    names: Iterable[str],
    *,
    most: int = 3,
    alike: float = 0.6,
    part: Callable[[str], str] = str,
) -> str:
    """A line with up to `most` of `names` that resemble `name`, empty where none does.

    alike: least similarity in [0, 1], as difflib's cutoff.  part: the part of a name to compare.
    """
    by_part = {part(other): other for other in names}
    close = difflib.get_close_matches(part(name), by_part, n=most, cutoff=alike)
    return f"nearest: {', '.join(by_part[match] for match in close)}\n" if close else ""

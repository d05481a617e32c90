"""Errors that a command answers with one line instead of a traceback."""

from __future__ import annotations


class OverrideError(Exception):
    """An override that names something that does not exist."""


# answered in one line; anything else is a bug and shows where
USER_ERRORS = (ValueError, OSError, FloatingPointError)

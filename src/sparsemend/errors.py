"""Errors that a command answers with one line instead of a traceback."""

from __future__ import annotations


class OverrideError(Exception):
    """An override that names or asks for what does not exist."""


# said in one line; anything else is a bug and says where
USER_ERRORS = (ValueError, OSError, FloatingPointError)

"""Turn what libraries raise about a checkpoint into one line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError


@contextmanager
def in_one_line(path: str, what: str, hint: str = "") -> Iterator[None]:
    """Turn any error about a checkpoint into a ValueError whose message is one line.

    hint: what to try where a file or a package is missing.
    """
    try:
        yield
    except (OSError, ImportError) as error:
        raise ValueError(f"model {path} cannot {what}: {cause(error)}{hint}") from error
    except Exception as error:  # libraries raise what they like on a bad file
        raise ValueError(f"model {path} cannot {what}: {cause(error)}") from error


def cause(error: Exception) -> str:
    """An error in one line, with its type where the text alone says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    if isinstance(error, UnpicklingError):
        return "its pickle holds more than tensors, and nothing else is read from one"
    if isinstance(error, KeyError):
        return f"{text} is missing in its files, or unknown to transformers"
    plain = isinstance(error, ValueError | OSError | ImportError) and text
    return text if plain else f"{type(error).__name__}: {text}"

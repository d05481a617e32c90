"""Word what libraries raise about a checkpoint in one line."""

from __future__ import annotations

from pickle import UnpicklingError


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

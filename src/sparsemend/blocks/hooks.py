"""Hooks that stay on modules for as long as a block of code runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def keep_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks on inside, and remove them afterwards, also after an error."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

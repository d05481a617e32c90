"""Errors that a command answers with one line instead of a traceback.

What a user's input makes a library raise is one line that names the input; a fault of ours keeps
its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class OverrideError(Exception):
    """An override that names something that does not exist."""


class CannotStream(ValueError):
    """The blocks of a model cannot be worked on one by one from files: a reason in one line."""


class NotFinite(ValueError):
    """Numbers that a linear is judged by are NaN or infinite; `linear`: its module name."""

    linear: str | None = None


# answered in one line; anything else is a bug and shows where
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)

PACKAGE = str(Path(__file__).resolve().parent)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a user's share of it, a file system
# of safetensors, then of torch.save, which differ by how far it came
FULL_WORDS = (
    *map(os.strerror, FULL),
    "PytorchStreamWriter",
    "iostream error",
    "unexpected pos",
)
# of torch on the host, on Apple's GPU, for a handle of cuBLAS, for what is not a tensor
NO_MEMORY = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
LONGEST = 400  # characters of a library's message that a line repeats


@contextmanager
def blame(
    what: str, remedy: str = "", *, say: Callable[[Exception], str] | None = None
) -> Iterator[None]:
    """Turn an error that a library raises inside into a ValueError of one line.

    what: the user's input by key and value, such as `model.path=/models/x`; remedy: what to give
    instead, empty where the error tells it; say: words an error, `brief` unless given.  An error
    that this package itself raised passes as it is: it has its own words, or is a fault of ours.
    So do a lack of memory and an error of CUDA, which no input causes.
    """
    try:
        yield
    except Exception as error:
        if raised_here(error) or lacks_memory(error) or "CUDA error" in str(error):
            raise
        line = f"{what}: {(say or brief)(error)}"
        raise ValueError(f"{line}; {remedy}" if remedy else line) from error


@contextmanager
def blame_left(path: Path) -> Iterator[None]:
    """Turn the error of reading what an earlier attempt left into one line that says how to go on.

    It is not done anew unasked: where the disk fails for a moment only, hours would be lost.
    """
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            raise
        raise ValueError(
            f"{path}, which an earlier attempt left, cannot be read ({brief(error)}); remove that "
            "file, and the same command does its part anew"
        ) from error


def raised_here(error: BaseException) -> bool:
    """Whether this package raised an error: its innermost Python frame is one of ours.

    Not where a library defines its class: compiled code, such as safetensors', has no frame.
    """
    trace = error.__traceback__
    if trace is None or type(error).__module__.partition(".")[0] not in ("builtins", __package__):
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def lacks_memory(error: BaseException) -> bool:
    """Whether Python, or torch on the host or on a GPU, was refused memory."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or refused


def lacks_disk(error: BaseException) -> bool:
    """Whether a file could not be written for want of room, for Python, safetensors or torch."""
    if isinstance(error, OSError):
        return error.errno in FULL  # none where it is in words already
    return any(words in str(error) for words in FULL_WORDS)


def lacks_operator(error: BaseException) -> bool:
    """Whether torch has no form of an operator for Apple's GPU."""
    return isinstance(error, NotImplementedError) and "for the MPS device" in str(error)


def lacks_determinism(error: BaseException) -> bool:
    """Whether torch was to be deterministic and has no such form of an operator."""
    return "does not have a deterministic implementation" in str(error)


def full_disk(what: str, error: BaseException) -> OSError:
    """The error of one line for a disk that is full; what: where it was noticed."""
    return OSError(
        f"{what}: the disk is full ({brief(error)}); make room, and go on with the same command "
        "and resume=auto"
    )


@contextmanager
def blame_disk(what: str) -> Iterator[None]:
    """Turn the error of a full disk into one line, whichever library met it."""
    try:
        yield
    except Exception as error:
        if lacks_disk(error):
            raise full_disk(what, error) from error
        raise


def brief(error: BaseException) -> str:
    """The message of an error in one line, cut to LONGEST; its type leads where that tells more."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = f"{text[:LONGEST].rstrip()} ..."
    if isinstance(error, ValueError | OSError) and text:
        return text.rstrip(".;")
    return f"{type(error).__name__}: {text}".rstrip(" .:;")


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

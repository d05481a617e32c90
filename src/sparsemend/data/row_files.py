"""Rows of local JSON and parquet files, each with its place, so that a message can name it.

A JSON file holds a list of values or one value per line, and may be packed by gzip.  What a library
raises on a broken file becomes one line that names the file.  Free of torch and datasets: files
are checked before anything heavy is imported, and what is read is the file as it is now, whatever
a cache may hold of an earlier one.  `what` is the file, and the key that names it, in messages.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

PlacedRow = tuple[str, object]  # its place (`line 3`, `row 2`) and its value
GZIP = ".gz"
_BLANK = re.compile(r"[ \t\n\r]*")  # of JSON alone


def json_rows(path: Path, what: str) -> Iterator[PlacedRow]:
    """The values of a JSON list, or one value per line; ValueError on what is neither."""
    with reading(what), open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        yield from _items(what, file.read()) if first.lstrip()[:1] == "[" else _lines(what, file)


def parquet_rows(path: Path, what: str) -> Iterator[PlacedRow]:
    """The rows of a parquet file, {column: value}, counted from 0."""
    with reading_parquet(path, what) as file:
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield f"row {number}", row


def open_text(path: Path) -> TextIO:
    """A UTF-8 file opened for reading, unpacked where its name says gzip.

    A byte order mark is left out, and line ends become newlines.
    """
    if path.suffix == GZIP:
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Name the file in what reading it as text raises: ValueError in one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text ({error.reason}); convert it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{what} is no whole gzip file ({error}); fetch it again, or take .gz off the name of "
            "plain text"
        ) from error


@contextmanager
def reading_parquet(path: Path, what: str) -> Iterator[ParquetFile]:
    """An open parquet file; what reading it raises is a ValueError that names it, in one line."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{what} is no whole parquet file ({why}); fetch it again") from error


def _lines(what: str, file: Iterable[str]) -> Iterator[PlacedRow]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{what} line {number} is not JSON: {_why(error)}; give one object per line, "
                    "or a list of objects"
                ) from error


def _items(what: str, text: str) -> Iterator[PlacedRow]:
    """The values of a JSON list, decoded one by one; lines count from 1, rows from 0."""
    decoder, line, counted, number = json.JSONDecoder(), 1, 0, 0
    position = _skip_blanks(text, text.index("[") + 1)
    ended = text.startswith("]", position)
    while not ended:
        line += text.count("\n", counted, position)
        counted = position
        place = f"row {number} (line {line})"
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{what} {place} is not JSON: {_why(error)}") from error
        yield place, value
        number += 1
        position = _skip_blanks(text, position)
        ended = text.startswith("]", position)
        if text.startswith(",", position):
            position = _skip_blanks(text, position + 1)  # a value must follow
        elif not ended:
            here = line + text.count("\n", counted, position)
            raise ValueError(
                f"{what} line {here} is not JSON: the list has neither , nor ] after row "
                f"{number - 1}"
            )
    if _skip_blanks(text, position + 1) < len(text):
        here = text.count("\n", 0, _skip_blanks(text, position + 1)) + 1
        raise ValueError(f"{what} line {here} is not JSON: text follows the end of the list")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return "values lie too deep in each other" if isinstance(error, RecursionError) else str(error)


def _skip_blanks(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def unencodable(text: str) -> bool:
    """Whether a string holds half of a surrogate pair, which no tokenizer and no file takes."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def short_form(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

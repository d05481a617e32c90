"""Documents of local text files: a .txt whole, one per row of .jsonl(.gz) and .parquet.

Free of torch and datasets, as row_files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from sparsemend.data.row_files import (
    PlacedRow,
    json_rows,
    open_text,
    reading,
    reading_parquet,
    short_form,
    unencodable,
)

ROWS = (".jsonl", ".jsonl.gz", ".json.gz", ".parquet")  # .json.gz: lines too, as C4's shards
ENDINGS = (".txt", *ROWS)
SMALL = 1 << 25  # bytes, 32 MiB: read to the end in less time than importing torch takes


def load_texts(key: str, path: Path, *, column: str) -> list[str]:
    """The documents of one file; `column` holds the text of rows, `key` names the file's key."""
    return list(_documents(key, path, column))


def check_texts(key: str, path: Path, *, column: str) -> None:
    """Raise ValueError unless a file can be read: to its end where it is small, else its first row.

    Raises FileNotFoundError where there is no file.
    """
    _check_name(key, path)
    rows = None if path.stat().st_size <= SMALL else 1
    for _ in islice(_documents(key, path, column), rows):
        pass


def _documents(key: str, path: Path, column: str) -> Iterator[str]:
    _check_name(key, path)
    what, empty = f"{key}={path}", True
    name = f"{key.rpartition('.')[0]}.column"
    for place, text in _texts(what, path, column, name):
        if text is None:
            raise ValueError(f"{what} has no text in {place}; drop the row")
        if not isinstance(text, str):
            raise ValueError(
                f"{what} {place} has {column}={short_form(text)} of type {type(text).__name__}; "
                f"set {name} to a column of text, or give text in quotes"
            )
        if unencodable(text):
            raise ValueError(f"{what} {place} has half of a surrogate pair; mend the row")
        empty = empty and not text
        yield text
    if empty:
        raise ValueError(f"{what} is empty; give a file with text")


def _check_name(key: str, path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder; give its files, [FILE,FILE] for several")
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path} does not exist; give a file")
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"{key}={path} is none of {', '.join(ENDINGS)}; convert it to one of them")


def _texts(what: str, path: Path, column: str, name: str) -> Iterator[PlacedRow]:
    """The documents with their places; `name` is the key that names the column."""
    if path.suffix == ".parquet":
        yield from _of_parquet(what, path, column, name)
    elif path.name.endswith(ROWS):
        for place, row in json_rows(path, what):
            yield place, _field(f"{what} {place}", row, column, name)
    else:
        with reading(what), open_text(path) as file:
            text = file.read()
        yield "it", text


def _of_parquet(what: str, path: Path, column: str, name: str) -> Iterator[PlacedRow]:
    with reading_parquet(path, what) as file:
        names = file.schema_arrow.names
        batches = file.iter_batches(columns=[column]) if column in names else ()
        values = (value for batch in batches for value in batch.column(0).to_pylist())
        for number, value in enumerate(values):
            yield f"row {number}", value
    if column not in names:
        raise ValueError(_no_column(what, column, names, name))


def _field(where: str, row: object, column: str, name: str) -> object:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no object of fields; give {{{column}: text}}")
    if column not in row:
        raise ValueError(_no_column(where, column, list(map(str, row)), name))
    return row[column]


def _no_column(where: str, column: str, names: list[str], name: str) -> str:
    return (
        f"{where} has no column {column}; set {name} to a text column of it "
        f"(columns: {', '.join(names) or 'none'})"
    )

"""Local files of instructions: .json (a list of objects), .jsonl (one object per line), .parquet.

Free of torch and datasets: preflight reads every local file to its end before anything heavy is
imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sparsemend.config.locations import is_local, tilde_hint
from sparsemend.data.prompts import Prompted, RowFormat
from sparsemend.data.row_files import PlacedRow, json_rows, parquet_rows

JSON = (".json", ".jsonl")
SUFFIXES = (*JSON, ".parquet")
SLICED = re.compile(r"(?P<split>[^\[\]]+)\[(?P<first>-?\d*):(?P<end>-?\d*)\]")


def split_rows(place: str) -> tuple[str, slice]:
    """A split or file and the rows that are meant: `train[-2000:]`, the last 2000 of train."""
    match = SLICED.fullmatch(place)
    if match is None:
        return place, slice(None)
    first, end = (int(number) if number else None for number in match.group("first", "end"))
    return match["split"], slice(first, end)


def check_some(key: str, place: str, total: int) -> int:
    """The number of rows of `place`, of whose split or file there are `total`.

    Raises ValueError where no row is meant.
    """
    count = len(range(total)[split_rows(place)[1]])
    if not count:
        raise ValueError(
            f"data.{key}={place} is none of the {total} rows; give a range inside them, such as "
            f"{split_rows(place)[0]}[-{max(1, total // 10)}:]"
        )
    return count


def split_files(key: str, path: str | None, config: str | None, split: str) -> list[Path] | None:
    """The local files of one split; None where `path` is a hub id.

    split: a file, or the name of a split of `path`, which is a file (its train split), a folder
    laid out like a hub repository, or a hub id.
    """
    if "/" in split or "." in split:
        return [_existing_file(f"data.{key}", Path(split))]
    if path is None:
        raise ValueError(
            f"data.{key}={split} is the name of a split, but data.path is null; give a file "
            f"({', '.join(SUFFIXES)}), or data.path=FOLDER_OR_HUB_ID"
        )
    if path.endswith(SUFFIXES):
        if split != "train":
            raise ValueError(
                f"data.path={path} is one file, which has no split {split}; give data.{key}=FILE, "
                f"or data.{key}=null"
            )
        return [_existing_file("data.path", Path(path))]
    if not is_local(path) and not Path(path).is_dir():
        return None
    return _files_in(key, Path(path), config, split)


def _existing_file(key: str, path: Path) -> Path:
    if not path.is_file():
        hint = tilde_hint(str(path))
        raise FileNotFoundError(f"{key}={path} does not exist; give a file of instructions{hint}")
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{key}={path} is none of {', '.join(SUFFIXES)}; convert it to one of them"
        )
    return path


def _files_in(key: str, folder: Path, config: str | None, split: str) -> list[Path]:
    """The files of a split, named like train-00000-of-00001.parquet or train.jsonl.

    A repository keeps the files of one config in a folder of that name; a folder that holds one
    file under another name (commonsense_170k.json) has a train split alone.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data.path={folder} does not exist; give a folder or a hub id")
    inside = folder / config if config and (folder / config).is_dir() else folder
    candidates = sorted(p for p in inside.rglob("*") if p.suffix in SUFFIXES)
    files = [p for p in candidates if re.match(rf"{re.escape(split)}[-_.]", p.name)]
    if not files and split == "train" and len(candidates) == 1:
        files = candidates
    if not files:
        names = ", ".join(p.name for p in candidates[:5]) or f"no file of {', '.join(SUFFIXES)}"
        raise FileNotFoundError(
            f"{inside} has no split {split} for data.{key} (it holds {names}); name its files "
            f"{split}.jsonl or {split}-*.parquet, or give data.{key}=FILE"
        )
    return files


def file_examples(path: Path, row_format: RowFormat, what: str) -> Iterator[Prompted]:
    """The examples of one file; every row is checked, and there is at least one.

    what: the file as messages name it.
    """
    read = json_rows if path.suffix in JSON else parquet_rows
    return examples_of(what, read(path, what), row_format)


def key_and_file(key: str, split: str, path: Path) -> str:
    """A file of the split that `data.<key>` gives: by that key, and by where it lies."""
    return f"data.{key}={path}" if Path(split) == path else f"data.{key}={split} ({path})"


def examples_of(what: str, rows: Iterable[PlacedRow], row_format: RowFormat) -> Iterator[Prompted]:
    """The examples of the rows of `what`.

    A row without the optional field has an empty one; where no row has it, the name is wrong.
    """
    number, with_optional = 0, 0
    for place, row in rows:
        yield row_format.example(row, where=f"{what} {place}")
        number += 1
        with_optional += row_format.optional is None or row_format.optional in row  # type: ignore[operator]
    if not number:
        raise ValueError(f"{what} is empty; give at least one example")
    if not with_optional:
        raise ValueError(
            f"{what} has no field {row_format.optional} in any row; name the right one in "
            "data.fields, or give null in its place where rows have none"
        )


def check_held_out(count: int, wanted: Mapping[str, int]) -> None:
    """Raise ValueError unless one of `count` train examples is left after the `wanted` ones."""
    total = sum(wanted.values())
    if total >= count:
        keys = " and ".join(f"data.{key}_examples={number}" for key, number in wanted.items())
        raise ValueError(
            f"{keys} hold {total} examples out of the {count} of data.train, which leaves none to "
            "train on; lower them"
        )

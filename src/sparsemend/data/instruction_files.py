"""Local files of instructions: .json (a list of objects) and .jsonl (one object per line).

Rows come one at a time with the line they begin on, so that a message can name it.  Free of torch
and datasets: preflight reads every local file to its end before anything heavy is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sparsemend.config.locations import is_local, tilde_hint
from sparsemend.data.prompts import Prompted, RowFormat

JSON = (".json", ".jsonl")
SUFFIXES = (*JSON, ".parquet")
_BLANK = re.compile(r"\s*")


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


def json_examples(path: Path, row_format: RowFormat) -> Iterator[Prompted]:
    """The examples of one .json or .jsonl file; every row is checked, and there is at least one."""
    line = 0
    for line, row in _rows(path):
        yield row_format.example(row, where=f"{path} line {line}")
    if not line:
        raise ValueError(f"{path} is empty; give at least one example")


def check_held_out(count: int, wanted: Mapping[str, int]) -> None:
    """Raise ValueError unless one of `count` train examples is left after the `wanted` ones."""
    total = sum(wanted.values())
    if total >= count:
        keys = " and ".join(f"data.{key}_examples={number}" for key, number in wanted.items())
        raise ValueError(
            f"{keys} hold {total} examples out of the {count} of data.train, which leaves none to "
            "train on; lower them"
        )


def _rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (line it begins on, value) from a list of values, or from one value per line."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            yield from (
                _items(path, file.read()) if first.lstrip()[:1] == "[" else _lines(path, file)
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it") from error


def _lines(path: Path, file: Iterable[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} line {number} is not JSON: {error.msg} at column {error.colno}; give "
                    "one object per line, or a list of objects"
                ) from error


def _items(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The values of a JSON list, decoded one by one."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip_blanks(text, text.index("[") + 1)
    while not text.startswith("]", position):
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} line {error.lineno} is not JSON: {error.msg} at column {error.colno}"
            ) from error
        yield line, value
        position = _skip_blanks(text, position)
        if text.startswith(",", position):
            position = _skip_blanks(text, position + 1)
        elif not text.startswith("]", position):
            here = line + text.count("\n", counted, position)
            raise ValueError(f"{path} line {here} is not JSON: the list has neither , nor ] here")


def _skip_blanks(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()

"""Local files of instructions, read to their end (no torch, no datasets)."""

from __future__ import annotations

from omegaconf import DictConfig

from sparsemend.config.asked import Asked
from sparsemend.data.chat_template import check_chat_template
from sparsemend.data.instruction_files import (
    check_held_out,
    check_some,
    file_examples,
    key_and_file,
    split_files,
    split_rows,
)
from sparsemend.data.local_files import check_apart, says_seen
from sparsemend.data.prompts import RowFormat


def check(asked: Asked) -> None:
    """The template is known, the rows of local files fill it, train keeps some.

    No split is held out and trained on.  Ranges of one may overlap: alpaca_gpt4_whole
    validates on rows that it trains on.
    """
    data = asked.section
    if data.chat_template:
        check_chat_template(f"{asked.key}.chat_template", asked.cfg.model)
    row_format = RowFormat(data.template, tuple(data.fields), data.empty_answers)
    counted = {
        key: _count_rows(key, data[key], data, row_format)
        for key in ("train", "validation", "test")
        if data[key] is not None
    }
    _check_apart(data)
    if counted["train"] is not None:
        held_out = {"validation": data.validation_examples, "test": data.test_examples}
        wanted = {key: 0 if key in counted else count for key, count in held_out.items()}
        check_held_out(counted["train"], wanted)


def _check_apart(data: DictConfig) -> None:
    """Raise ValueError where validation or test is the whole of train, by its name or its bytes."""
    files = {}
    for key in ("train", "validation", "test"):
        place = data[key]
        if place is None or split_rows(place)[1] != slice(None):
            continue
        if key != "train" and place == data.train:
            raise ValueError(says_seen(f"data.{key}", place, f"data.train={place}"))
        files[key] = split_files(key, data.path, data.config, place) or []
    check_apart("data", files)


def _count_rows(key: str, place: str, data: DictConfig, row_format: RowFormat) -> int | None:
    """The number of rows of a split, all of them sound; None where they lie on the hub."""
    name, _ = split_rows(place)
    files = split_files(key, data.path, data.config, name)
    if files is None:
        return None
    total = sum(
        1 for path in files for _ in file_examples(path, row_format, key_and_file(key, name, path))
    )
    return check_some(key, place, total)

"""Checks of local data files before anything heavy is imported: the data part of preflight.

A data source may hold another one, its `text`; both are checked, each under its own key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from sparsemend.checkpoint.model import ModelConfig
from sparsemend.config.locations import is_local, tilde_hint
from sparsemend.data.instruction_files import JSON, check_held_out, json_examples, split_files
from sparsemend.data.prompts import RowFormat
from sparsemend.data.token_file import check_tokens


def check_files(cfg: DictConfig, config: ModelConfig | None) -> None:
    """Every local data file is there; its rows of tokens or of instructions are sound."""
    for key, data in data_sources(cfg):
        module = str(data.get("_target_", "")).split(".")[-2:][0]
        if module == "instructions":
            check_instructions(data)
        elif module == "tokens":
            check_tokens_files(key, data, config)
        else:
            check_texts(key, data)


def check_instructions(data: DictConfig) -> None:
    """The template is known, rows of local .json and .jsonl files fill it, train keeps some."""
    row_format = RowFormat(data.template, tuple(data.fields), data.empty_answers)
    counted = {
        key: _count_rows(split_files(key, data.path, data.config, data[key]), row_format)
        for key in ("train", "validation", "test")
        if data[key] is not None
    }
    if counted["train"] is not None:
        held_out = {"validation": data.validation_examples, "test": data.test_examples}
        wanted = {key: 0 if key in counted else count for key, count in held_out.items()}
        check_held_out(counted["train"], wanted)


def _count_rows(files: list[Path] | None, row_format: RowFormat) -> int | None:
    """Sound rows of .json and .jsonl files; None where `datasets` will read some of them."""
    if files is None or any(path.suffix not in JSON for path in files):
        return None
    return sum(1 for path in files for _ in json_examples(path, row_format))


def check_tokens_files(key: str, data: DictConfig, config: ModelConfig | None) -> None:
    """Tokens files hold enough rows of ids that the vocabulary has."""
    for part in ("calibration", "train", "validation", "test"):
        for path in _paths(data.get(part)):
            check_tokens(
                f"{key}.{part}",
                path,
                rows=data.calibration_samples if part == "calibration" else 1,
                seqlen=data.seqlen,
                vocabulary=config.vocabulary if config else None,
            )


def data_sources(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield (key, source) of the data, and of the text it may hold for pruning and test windows."""
    key, source = "data", cfg.data
    while True:
        yield key, source
        if "text" not in source:
            return
        key, source = f"{key}.text", source.text
        if not isinstance(source, DictConfig):
            raise ValueError(
                f"{key}={source} is no data source; choose one with data@{key}=MEMBER, for "
                f"example data@{key}=python_docs"
            )


def check_texts(key: str, data: DictConfig) -> None:
    """The folder and the text files that are named are there."""
    if "path" in data and is_local(data.path) and not Path(data.path).exists():
        raise FileNotFoundError(
            f"{key}.path={data.path} does not exist; give a local folder or a hub id"
            + tilde_hint(data.path)
        )
    for part in ("train", "validation", "test"):
        for path in _paths(data.get(part)):
            _check_exists(f"{key}.{part}", path)


def _check_exists(key: str, path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{key}={path} does not exist; give a file" + tilde_hint(str(path)))


def _paths(value: Any) -> list[Path]:
    if value is None:
        return []
    return [Path(str(item)) for item in (value if isinstance(value, ListConfig) else [value])]

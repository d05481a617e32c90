"""The data sources of a run, and the places that they name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.tokenizer import check_has_tokenizer
from sparsemend.config.flags import says
from sparsemend.config.locations import is_local, tilde_hint


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


def check_tokenizers(cfg: DictConfig) -> None:
    """Raise ValueError where a source reads text and the model folder has no tokenizer."""
    for key, source in data_sources(cfg):
        if says(source, "needs_tokenizer"):
            what = f"{key} ({source.get('name')})"
            check_has_tokenizer(what, cfg.model, "give data=tokens files of token ids")


def check_paths(cfg: DictConfig) -> None:
    """Raise FileNotFoundError where the `path` of a data source names no hub id and no place."""
    for key, source in data_sources(cfg):
        path = source.get("path")
        if path is not None and is_local(path) and not Path(path).exists():
            raise FileNotFoundError(
                f"{key}.path={path} does not exist; give a local folder or a hub id"
                + tilde_hint(path)
            )

"""Text columns of a hub repository's files, and windows over their documents."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from pyarrow import ArrowException
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import encode, windows
from sparsemend.data.by_content import content_cache
from sparsemend.data.row_files import short_form

PATIENCE = 3.0  # seconds that the hub has to answer


def document_windows(
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Iterable[str],
    seqlen: int,
    *,
    what: str,
    bos: int | None,
    key: str = "data",
) -> Tensor:
    """Tokenise each document by itself, join the ids end to end and cut them into windows.

    A document thus has the same tokens as in calibration (its BOS, where the tokenizer adds one,
    marks its beginning), and no tokenizer has to read a text of 40 MB.  Our choice.
    """
    ids = torch.cat([encode(tokenizer, text) for text in texts])
    return windows(ids, seqlen, what=what, bos=bos, key=key)


def first_documents(texts: Sequence[str], count: int, *, key: str, where: str) -> Sequence[str]:
    """The first `count` documents of `where`; `key` names the config key that sets the count."""
    if not 0 < count <= len(texts):
        raise ValueError(
            f"{key}={count} is not in [1, {len(texts)}], the documents of {where}; set "
            f"{key}={len(texts)} or less"
        )
    return texts[:count]


class TextRows(Sequence[str]):
    """A column of texts, read from disk as it is indexed; ValueError names a row without text."""

    def __init__(self, column: Sequence[Any], where: str) -> None:
        self.column, self.where = column, where

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        rows = range(len(self.column))[index]
        if isinstance(rows, int):
            return self._text(rows, self.column[rows])
        return [self._text(row, text) for row, text in zip(rows, self.column[index], strict=True)]

    def __iter__(self) -> Iterator[str]:
        return (self._text(row, text) for row, text in enumerate(self.column))

    def __len__(self) -> int:
        return len(self.column)

    def _text(self, row: int, text: Any) -> str:
        if not isinstance(text, str):
            raise ValueError(f"{self.where} row {row} is {short_form(text)}, no text; drop the row")
        return text


def text_column(
    path: str, files: str, *, split: str, column: str, revision: str | None = None
) -> TextRows:
    """One text column of some files of a repository, read from disk as it is indexed."""
    rows = load_rows(
        path,
        data_files={split: files},
        split=split,
        revision=revision,
        verification_mode="no_checks",  # one shard never has the rows that its repository declares
    )
    where = f"{path.rstrip('/')}/{files}"
    if column not in rows.column_names:
        raise ValueError(
            f"{where} has no column {column} (columns: {', '.join(rows.column_names)}); give files "
            "that have the texts under that name"
        )
    return TextRows(rows[column], where)


def load_rows(path: str, *arguments: Any, **settings: Any) -> Any:
    """The output of `datasets.load_dataset`, from this machine's copy where the hub is not reached.

    Raises OSError in a second or three where there is neither, with a text that needs no network;
    `load_dataset` itself goes on trying for half a minute.
    """
    from datasets import load_dataset

    if Path(path).is_dir():
        settings |= content_cache(path, data_files=settings.get("data_files"))
        with naming(f"{path.rstrip('/')} ({settings.get('data_files') or 'all files'})"):
            return load_dataset(path, *arguments, **settings)
    if reachable():
        return load_dataset(path, *arguments, **settings)
    try:
        with offline():
            return load_dataset(path, *arguments, **settings)
    except (OSError, ValueError) as error:  # a config that was not kept is a ValueError
        raise OSError(
            f"{path} lies on {constants.ENDPOINT}, which does not answer, and this machine has no "
            "copy of it; give data.path a folder laid out like it, or read text of your own: "
            "data=text data.train=FILE data.test=FILE (data=python_docs needs neither)"
        ) from error


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Name what was read where `datasets` cannot read it: ValueError in one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, EOFError, zlib.error, UnicodeDecodeError, ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        why = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{what} cannot be read ({why}); fetch its files again") from error


def reachable() -> bool:
    """Whether the hub answers within PATIENCE seconds, through a proxy where one is set."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # of whatever library the hub's client is built on
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Let the hub's client and `datasets` read this machine's copies alone while inside."""
    from datasets import config

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before

"""Text columns of a hub repository's files, and windows over their documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import encode, windows


def document_windows(
    tokenizer: PreTrainedTokenizerBase | None, texts: Iterable[str], seqlen: int, *, what: str
) -> Tensor:
    """Tokenise each document by itself, join the ids end to end and cut them into windows.

    A document thus has the same tokens as in calibration (its BOS, where the tokenizer adds one,
    marks its beginning), and no tokenizer has to read a text of 40 MB.  Our choice.
    """
    return windows(torch.cat([encode(tokenizer, text) for text in texts]), seqlen, what=what)


def first_documents(texts: Sequence[str], count: int, *, key: str, where: str) -> Sequence[str]:
    """The first `count` documents of `where`; `key` names the config key that sets the count."""
    if not 0 < count <= len(texts):
        raise ValueError(
            f"{key}={count} is not in [1, {len(texts)}], the documents of {where}; set "
            f"{key}={len(texts)} or less"
        )
    return texts[:count]


def text_column(
    path: str, files: str, *, split: str, column: str, revision: str | None = None
) -> Sequence[str]:
    """One text column of some files of a repository, read from disk as it is indexed."""
    from datasets import load_dataset

    texts: Sequence[str] = load_dataset(
        path,
        data_files={split: files},
        split=split,
        revision=revision,
        verification_mode="no_checks",  # one shard never has the rows that its repository declares
    )[column]
    return texts

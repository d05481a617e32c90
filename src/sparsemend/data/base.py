"""The contract of every data source: token windows, and nothing a method could confuse.

Calibration feeds pruners and training-free repair, train and validation feed trained repair,
test is only ever read by evaluation.  Every window is a row of an integer tensor (N, T); what
training and tasks read carries labels too, so that prompts and padding can be left out of a loss.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

UNLABELLED = -100  # the label that torch's cross-entropy ignores


@dataclass(frozen=True)
class Examples:
    """Windows and the labels that a loss compares with.

    tokens, labels: int64 (N, T).  A label is the token of its own position, or UNLABELLED where
    predicting that token does not count (prompts, padding).
    """

    tokens: Tensor
    labels: Tensor

    @staticmethod
    def of(tokens: Tensor) -> Examples:
        """Windows (N, T) whose every token counts."""
        return Examples(tokens, tokens)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def first(self, count: int) -> Examples:
        return Examples(self.tokens[:count], self.labels[:count])


class DataSource(ABC):
    """Windows of `seqlen` tokens for calibration, training, validation and test."""

    name: str
    seqlen: int
    calibration_samples: int

    @abstractmethod
    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        """Calibration windows, int64 (calibration_samples, seqlen), a function of `seed` alone."""

    @abstractmethod
    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Training windows (N, seqlen), in corpus order."""

    @abstractmethod
    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Validation windows (N, seqlen), which early stopping and searches may look at."""

    @abstractmethod
    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        """Test windows, int64 (N, seqlen); read by evaluation only."""

    def task(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples | None:
        """Labelled test windows of the task that train is about; None for plain text."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the underlying text or tokens, recorded in every result."""


def windows(ids: Tensor, seqlen: int, *, what: str) -> Tensor:
    """Cut a token stream (n,) into its floor(n / seqlen) full windows (N, seqlen).

    The remainder is dropped (WikiText-2 protocol of SparseGPT and Wanda).  Raises ValueError
    when the stream is shorter than one window.
    """
    count = ids.numel() // seqlen
    if count == 0:
        raise ValueError(
            f"the {what} text has {ids.numel()} tokens, shorter than one window of "
            f"data.seqlen={seqlen}; give more text or lower data.seqlen to at most {ids.numel()}"
        )
    return ids[: count * seqlen].view(count, seqlen)


def encode(tokenizer: PreTrainedTokenizerBase | None, text: str) -> Tensor:
    """Token ids of `text` tokenised once as a whole, int64 (n,), tokenizer defaults."""
    if tokenizer is None:
        raise ValueError(
            "this data source needs a tokenizer and the model folder has none; "
            "use data=tokens with pre-tokenised files"
        )
    ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def held_out_rows(rows: Tensor, *, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
    """(train, validation): the last `fraction` of the rows (at least one) held out."""
    if rows.shape[0] < 2:
        raise ValueError(
            f"{rows.shape[0]} training window(s) cannot be split into train and validation; "
            "give at least 2 windows or a validation file"
        )
    held = max(1, int(rows.shape[0] * fraction))
    return rows[:-held], rows[-held:]


def fingerprint_texts(texts: Iterable[str]) -> str:
    """SHA-256 (hex) of the texts in order; each is preceded by its length, so borders count."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()

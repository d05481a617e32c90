"""The contract of every data source: token windows, and nothing a method could confuse.

Calibration feeds pruners and training-free repair, train and validation feed trained repair,
test is only ever read by evaluation.  Every window is a row of an integer tensor (N, T); what
training and tasks read carries labels too, so that prompts and padding can be left out of a loss.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.config.values import digest

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

    def first(self, count: int | None) -> Examples:
        """The first `count` examples; None: all."""
        return Examples(self.tokens[:count], self.labels[:count])


class DataSource(ABC):
    """Windows of `seqlen` tokens for calibration, training, validation and test.

    needs_tokenizer: a model folder without one does not serve.  key: that of its section in the
    config, which messages name.
    """

    needs_tokenizer: ClassVar[bool] = True

    name: str
    seqlen: int
    calibration_samples: int
    key: str = "data"

    def calibrates_on(self) -> str:
        """`text`, or `train` where calibration windows lie over the training examples."""
        return "text"

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
        """SHA-256 (hex) of the underlying text or tokens."""

    def framing(self) -> Mapping[str, bool]:
        """Entries of the protocol that say in which ways texts became windows."""
        return {}

    def data_hash(self) -> str:
        """The fingerprint, hashed with what framing differs from the papers'; in every result."""
        unusual = {key: value for key, value in self.framing().items() if value}
        return digest({"texts": self.fingerprint(), **unusual}) if unusual else self.fingerprint()


def windows(
    ids: Tensor, seqlen: int, *, what: str, bos: int | None = None, key: str = "data"
) -> Tensor:
    """Cut a token stream (n,) into its floor(n / seqlen) full windows (N, seqlen).

    The remainder is dropped (WikiText-2 protocol of SparseGPT and Wanda).  With a BOS token, which
    counts as one of a window's tokens, the windows take up fewer tokens of the stream each.  Raises
    ValueError when the stream is shorter than one window.
    """
    count = ids.numel() // seqlen
    if count == 0:
        raise ValueError(
            f"the {what} text has {ids.numel()} tokens, shorter than one window of "
            f"{key}.seqlen={seqlen}; give more text or lower {key}.seqlen to at most {ids.numel()}"
        )
    if bos is None:
        return ids[: count * seqlen].view(count, seqlen)
    rows, start = [], 0
    while start < ids.numel():
        row = window_at(ids, start, seqlen, bos=bos)
        start += seqlen - int(ids[start] != bos)
        if row.numel() == seqlen:
            rows.append(row)
    return torch.stack(rows)


def window_at(ids: Tensor, start: int, seqlen: int, *, bos: int | None) -> Tensor:
    """The window (seqlen,) of a token stream from `start` on, behind `bos` unless that is there."""
    if bos is None or ids[start] == bos:
        return ids[start : start + seqlen]
    return torch.cat([ids.new_tensor([bos]), ids[start : start + seqlen - 1]])


def bos_token(tokenizer: PreTrainedTokenizerBase | None, bos: bool) -> int | None:
    """The id of the token that windows begin with; None where `bos` is off.

    Raises ValueError where the tokenizer has none.
    """
    if not isinstance(bos, bool):
        raise ValueError(f"bos={bos} is neither true nor false; auto is resolved by the model")
    if not bos or tokenizer is None:
        return None
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "data.bos=true, but this tokenizer has no BOS token (bos_token in "
            "tokenizer_config.json); set data.bos=false"
        )
    return int(tokenizer.bos_token_id)


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


def adopt_text_(source: DataSource, text: DataSource) -> None:
    """Tell the text that a source holds by which key it does.

    Raises ValueError where the two differ in a key of both.
    """
    text.key = f"{source.key}.text"
    for key in ("calibration_samples", "bos"):
        outer, inner = getattr(source, key), getattr(text, key, getattr(source, key))
        if outer != inner:
            raise ValueError(
                f"data.text.{key}={inner} differs from data.{key}={outer}, which it follows; set "
                f"data.{key} alone"
            )


def fingerprint_texts(texts: Iterable[str]) -> str:
    """SHA-256 (hex) of the texts in order; each is preceded by its length, so borders count."""
    hasher = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        hasher.update(len(encoded).to_bytes(8, "big"))
        hasher.update(encoded)
    return hasher.hexdigest()


def labelled_lengths(labels: Tensor) -> list[int]:
    """How many positions each row of labels (N, T) has up to its last label, that included."""
    reach = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    lengths: list[int] = (reach * (labels != UNLABELLED)).amax(dim=1).tolist()
    return lengths


def trim(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and labels (B, T) up to the last label of any row: what is right of it has no effect.

    Under causal attention no labelled position sees the padding that is cut, so the loss is the
    same but for the order of sums.  Two columns stay where no row has a label.
    """
    labelled = (labels != UNLABELLED).any(dim=0).nonzero()
    end = max(2, int(labelled[-1]) + 1) if len(labelled) else 2
    return tokens[:, :end], labels[:, :end]

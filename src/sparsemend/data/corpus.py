"""A pretraining corpus to train on, beside the text that is pruned on and measured.

SP-LoRA and LoRS prune on C4, measure on WikiText-2 and repair on the first documents of SlimPajama
or FineWeb-Edu (github.com/hyx1999/Lors).  Their code drops what is left of every 1,000 documents
after cutting windows; here only the remainder of the whole is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import (
    DataSource,
    Examples,
    adopt_text_,
    bos_token,
    fingerprint_texts,
)
from sparsemend.data.hub_files import document_windows, first_documents, text_column


@dataclass(kw_only=True)
class Corpus(DataSource):
    """Windows over the first `documents` of `files`; calibration and test are those of `text`.

    validation_files: None takes the documents of `files` that follow those trained on.
    """

    name: str
    path: str
    files: str
    validation_files: str | None
    documents: int
    validation_documents: int
    seqlen: int
    calibration_samples: int
    bos: bool
    text: DataSource

    def __post_init__(self) -> None:
        adopt_text_(self, self.text)

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return self.text.calibration(tokenizer, seed=seed)

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        return self._windows(tokenizer, self._train(), "train")

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        return self._windows(tokenizer, self._validation(), "validation")

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return self.text.test(tokenizer)

    def fingerprint(self) -> str:
        """SHA-256 of every train and validation document read, then of the text's fingerprint."""
        texts = chain(self._train(), self._validation(), [self.text.fingerprint()])
        return fingerprint_texts(texts)

    def framing(self) -> Mapping[str, bool]:
        """Whether windows begin with BOS: those trained on, where the text does not say its own."""
        return {"bos": self.bos, **self.text.framing()}

    def _windows(
        self, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str], what: str
    ) -> Examples:
        bos = bos_token(tokenizer, self.bos)
        return Examples.of(
            document_windows(tokenizer, texts, self.seqlen, what=what, bos=bos, key=self.key)
        )

    def _train(self) -> Sequence[str]:
        return first_documents(
            self._documents("train", self.files),
            self.documents,
            key=f"{self.key}.documents",
            where=self.files,
        )

    def _validation(self) -> Sequence[str]:
        files = self.validation_files
        texts = self._documents("validation", files) if files else self._after_train()
        return first_documents(
            texts,
            self.validation_documents,
            key=f"{self.key}.validation_documents",
            where=files or f"{self.files} after the first {self.documents}",
        )

    def _after_train(self) -> Sequence[str]:
        return self._documents("train", self.files)[self.documents :]

    def _documents(self, split: str, files: str) -> Sequence[str]:
        return text_column(self.path, files, split=split, column="text")

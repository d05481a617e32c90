"""Windows over the documentation that every CPython carries: data that needs no network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import DataSource, Examples, bos_token, encode, windows
from sparsemend.data.documentation import SEPARATOR, SPLITS, library_source, split_text
from sparsemend.data.sampling import from_stream


class PythonDocs(DataSource):
    """Windows over the embedded documentation; documents in the order of their name's hash."""

    def __init__(
        self,
        *,
        name: str,
        seqlen: int,
        calibration_samples: int,
        bos: bool,
        include_source: bool,
        documentation_repeats: int,
    ) -> None:
        self.name = name
        self.seqlen = seqlen
        self.calibration_samples = calibration_samples
        self.bos = bos
        self.include_source = include_source
        self.documentation_repeats = documentation_repeats

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return from_stream(
            encode(tokenizer, split_text("train")),
            samples=self.calibration_samples,
            seqlen=self.seqlen,
            seed=seed,
            bos=bos_token(tokenizer, self.bos),
        )

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Documentation windows, repeated as asked, then (if asked) windows of library source."""
        rows = self._windows(tokenizer, split_text("train"), "train")
        rows = rows.repeat(self.documentation_repeats, 1)
        if self.include_source:
            source = SEPARATOR.join(library_source())
            rows = torch.cat([rows, self._windows(tokenizer, source, "source")])
        return Examples.of(rows)

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        return Examples.of(self._windows(tokenizer, split_text("validation"), "validation"))

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return self._windows(tokenizer, split_text("test"), "test")

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(split_text(split).encode())
        return digest.hexdigest()

    def framing(self) -> Mapping[str, bool]:
        return {"bos": self.bos}

    def _windows(self, tokenizer: PreTrainedTokenizerBase | None, text: str, what: str) -> Tensor:
        bos = bos_token(tokenizer, self.bos)
        return windows(encode(tokenizer, text), self.seqlen, what=what, bos=bos)

"""Windows over the documentation that every CPython carries: data that needs no network."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import Examples
from sparsemend.data.documentation import SEPARATOR, SPLITS, library_source, split_text
from sparsemend.data.streams import StreamSource


class PythonDocs(StreamSource):
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

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Documentation windows, repeated as asked, then (if asked) windows of library source."""
        rows = self.cut(tokenizer, "train").repeat(self.documentation_repeats, 1)
        if self.include_source:
            rows = torch.cat([rows, self.cut(tokenizer, "source")])
        return Examples.of(rows)

    def read(self, split: str) -> str:
        """The documents of a split, or the library's source code."""
        return SEPARATOR.join(library_source()) if split == "source" else split_text(split)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(split_text(split).encode())
        return digest.hexdigest()

"""Pre-tokenised windows from safetensors files, one integer tensor `input_ids` (N, T) each.

They serve models whose tokenizer is not at hand, and windows that must be the same to the bit
elsewhere.  Nothing is sampled: calibration is the first rows of its file in order, so the seed
changes nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import DataSource, Examples, held_out_rows
from sparsemend.data.token_file import check_tokens


class Tokens(DataSource):
    """Rows of the given files, each cut to its first `seqlen` tokens."""

    needs_tokenizer: ClassVar = False

    def __init__(
        self,
        *,
        name: str,
        calibration: str | Path,
        train: str | Path,
        validation: str | Path | None,
        test: str | Path,
        seqlen: int,
        calibration_samples: int,
    ) -> None:
        self.name = name
        self.seqlen = seqlen
        self.calibration_samples = calibration_samples
        self.calibration_file = Path(calibration)
        self.train_file = Path(train)
        self.validation_file = None if validation is None else Path(validation)
        self.test_file = Path(test)

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        """The first rows of the calibration file, whatever the seed."""
        rows = self._rows("calibration", self.calibration_file, least=self.calibration_samples)
        return rows[: self.calibration_samples]

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """All rows of the train file; without its last 5 % where no validation file is given."""
        rows = self._rows("train", self.train_file)
        return Examples.of(held_out_rows(rows)[0] if self.validation_file is None else rows)

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """All rows of the validation file, else the last 5 % of the train rows."""
        if self.validation_file is None:
            return Examples.of(held_out_rows(self._rows("train", self.train_file))[1])
        return Examples.of(self._rows("validation", self.validation_file))

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return self._rows("test", self.test_file)

    def fingerprint(self) -> str:
        """SHA-256 over the SHA-256 of the bytes of every file, in the order of the parameters."""
        digest = hashlib.sha256()
        for path in (self.calibration_file, self.train_file, self.validation_file, self.test_file):
            if path is not None:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _rows(self, key: str, path: Path, *, least: int = 1) -> Tensor:
        """Every row of one checked file, int64 (N, seqlen)."""
        check_tokens(f"{self.key}.{key}", path, rows=least, seqlen=self.seqlen, vocabulary=None)
        with safe_open(path, framework="pt") as file:
            rows: Tensor = file.get_slice("input_ids")[:, : self.seqlen]
        return rows.to(torch.int64)

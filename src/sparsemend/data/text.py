"""Local text files: one stream per split, tokenised once as a whole.

A .txt file is one document, taken whole (line ends become newlines).  Every row of a .jsonl or
.parquet file is one.  The documents of a split are joined by `separator`.
Without files of its own calibration reads the whole train text, also the part whose windows are
held out where no validation file is given, so that it draws the windows that the protocol draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import Examples, fingerprint_texts, held_out_rows
from sparsemend.data.streams import StreamSource
from sparsemend.data.text_files import load_texts

Files = str | Path | Iterable[str | Path]


class LocalText(StreamSource):
    """Windows over local .txt, .jsonl(.gz) and .parquet files; `column` holds the text of rows."""

    def __init__(
        self,
        *,
        name: str,
        train: Files,
        calibration: Files | None,
        validation: Files | None,
        test: Files,
        column: str,
        separator: str,
        seqlen: int,
        calibration_samples: int,
        bos: bool,
    ) -> None:
        self.name = name
        self.seqlen = seqlen
        self.calibration_samples = calibration_samples
        self.bos = bos
        self.column = column
        self.separator = separator
        self.files = {  # of each split; none where another split gives its windows
            "train": _paths(train),
            "calibration": _paths(calibration),
            "validation": _paths(validation),
            "test": _paths(test),
        }
        self._read: dict[str, str] = {}  # texts by split, each read once

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        """Windows of the calibration files, else of the train text."""
        split = "calibration" if self.files["calibration"] else "train"
        return self.draw(tokenizer, split, seed=seed)

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """All train windows; without their last 5 % where no validation file is given."""
        rows = self.cut(tokenizer, "train")
        return Examples.of(rows if self.files["validation"] else held_out_rows(rows)[0])

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """The windows of the validation files, else the last 5 % of the train windows."""
        if self.files["validation"]:
            return Examples.of(self.cut(tokenizer, "validation"))
        return Examples.of(held_out_rows(self.cut(tokenizer, "train"))[1])

    def fingerprint(self) -> str:
        """SHA-256 of the train, validation (where given) and test texts, then of calibration's."""
        texts = [self.read(s) for s in ("train", "validation", "test") if self.files[s]]
        if self.files["calibration"]:
            texts += ["calibration", self.read("calibration")]
        return fingerprint_texts(texts)

    def read(self, split: str) -> str:
        if split not in self._read:
            documents = [
                document
                for path in self.files[split]
                for document in load_texts(f"{self.key}.{split}", path, column=self.column)
            ]
            self._read[split] = self.separator.join(documents)
        return self._read[split]


def _paths(files: Files | None) -> list[Path]:
    if files is None:
        return []
    return [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]

"""Local text files through `datasets`: one stream per split, tokenised once as a whole.

A .txt file is one document, taken whole (line ends become newlines).  Every row of a .jsonl or
.parquet file is one.  The documents of a split are joined by `separator`; calibration draws from
the train stream and windows are cut by the WikiText-2 protocol (Frantar and Alistarh 2023,
arXiv 2301.00774).  Calibration reads the whole train text, also the part whose windows are held
out where no validation file is given, so that it draws the windows that the protocol draws.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import (
    DataSource,
    Examples,
    encode,
    fingerprint_texts,
    held_out_rows,
    windows,
)
from sparsemend.data.sampling import from_stream

BUILDERS = {
    ".txt": "text",
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".json.gz": "json",  # lines too: the name that C4 shards carry
    ".parquet": "parquet",
}

Files = str | Path | Iterable[str | Path]


class LocalText(DataSource):
    """Windows over local .txt, .jsonl(.gz) and .parquet files; `column` holds the text of rows."""

    def __init__(
        self,
        *,
        name: str,
        train: Files,
        validation: Files | None,
        test: Files,
        column: str,
        separator: str,
        seqlen: int,
        calibration_samples: int,
    ) -> None:
        self.name = name
        self.seqlen = seqlen
        self.calibration_samples = calibration_samples
        self.column = column
        self.separator = separator
        self.train_files = _paths(train)
        self.validation_files = None if validation is None else _paths(validation)
        self.test_files = _paths(test)

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return from_stream(
            encode(tokenizer, self._text("train", self.train_files)),
            samples=self.calibration_samples,
            seqlen=self.seqlen,
            seed=seed,
        )

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """All train windows; without their last 5 % where no validation file is given."""
        rows = self._windows(tokenizer, "train", self.train_files)
        return Examples.of(held_out_rows(rows)[0] if self.validation_files is None else rows)

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """The windows of the validation files, else the last 5 % of the train windows."""
        if self.validation_files is None:
            rows = held_out_rows(self._windows(tokenizer, "train", self.train_files))[1]
            return Examples.of(rows)
        return Examples.of(self._windows(tokenizer, "validation", self.validation_files))

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return self._windows(tokenizer, "test", self.test_files)

    def fingerprint(self) -> str:
        """SHA-256 of the train, validation (where given) and test texts."""
        texts = [self._text("train", self.train_files)]
        if self.validation_files is not None:
            texts.append(self._text("validation", self.validation_files))
        return fingerprint_texts([*texts, self._text("test", self.test_files)])

    def _windows(
        self, tokenizer: PreTrainedTokenizerBase | None, key: str, files: list[Path]
    ) -> Tensor:
        return windows(encode(tokenizer, self._text(key, files)), self.seqlen, what=key)

    def _text(self, key: str, files: list[Path]) -> str:
        documents = [d for path in files for d in load_texts(key, path, column=self.column)]
        return self.separator.join(documents)


def load_texts(key: str, path: Path, *, column: str) -> list[str]:
    """The documents of one file: a .txt whole, else one per row, from `column`."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if not path.is_file():
        raise FileNotFoundError(f"data.{key}={path} does not exist; give a file")
    builder = next((b for suffix, b in BUILDERS.items() if path.name.endswith(suffix)), None)
    if builder is None:
        raise ValueError(
            f"data.{key}={path} is none of {', '.join(BUILDERS)}; convert it to one of them"
        )
    # By lines or paragraphs, `datasets` drops the blank lines between them; a name is a pattern.
    settings = {"sample_by": "document"} if builder == "text" else {}
    if not path.stat().st_size:
        raise ValueError(f"data.{key}={path} is empty; give a file with text")
    try:
        rows = load_dataset(builder, data_files=glob.escape(str(path)), split="train", **settings)
    except DatasetGenerationError as error:
        why = error.__cause__ or error
        raise ValueError(f"data.{key}={path} cannot be read ({why}); is it UTF-8?") from error
    wanted = "text" if builder == "text" else column
    kind = getattr(rows.features.get(wanted), "dtype", None)
    if kind not in ("string", "large_string"):
        problem = f"column {wanted} of type {kind}" if kind else f"no column {wanted}"
        raise ValueError(
            f"data.{key}={path} has {problem}; set data.column to a text column of it "
            f"(columns: {', '.join(rows.column_names)})"
        )
    texts: list[str] = rows[wanted][:]
    empty = next((row for row, text in enumerate(texts) if text is None), None)
    if empty is not None:
        raise ValueError(f"data.{key}={path} has no text in row {empty}; drop the row")
    texts[:1] = [text.removeprefix("\ufeff") for text in texts[:1]]  # a byte order mark
    return texts


def _paths(files: Files) -> list[Path]:
    return [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]

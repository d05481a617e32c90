"""WikiText-2, C4 and Penn Treebank as the pruning papers read them.

The rows read, the strings that join them and the windows drawn follow the loaders of SparseGPT
and Wanda (Frantar and Alistarh 2023, arXiv 2301.00774; Sun et al. 2024, arXiv 2306.11695).  A
`path` is a hub id or a local folder laid out like the hub repository.  The papers leave open what
trained repair reads; where we choose, the docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import (
    DataSource,
    Examples,
    bos_token,
    encode,
    fingerprint_texts,
    held_out_rows,
    windows,
)
from sparsemend.data.hub_files import (
    TextRows,
    document_windows,
    first_documents,
    load_rows,
    text_column,
)
from sparsemend.data.sampling import from_documents
from sparsemend.data.streams import StreamSource

C4_TEST_ROWS = 1100  # SparseGPT's C4 perplexity: the first rows of the validation shard ...
C4_TEST_WINDOWS = 256  # ... and their first 256 windows
TESTED = ("wikitext2", "c4", "ptb")
SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True)
class WikiText2(StreamSource):
    """WikiText-2 raw; rows of train joined by a space, of validation and test by two newlines."""

    name: str
    path: str
    config: str
    seqlen: int
    calibration_samples: int
    bos: bool

    def fingerprint(self) -> str:
        return fingerprint_texts(wikitext(self.path, self.config, split) for split in SPLITS)

    def read(self, split: str) -> str:
        return wikitext(self.path, self.config, split)


@dataclass(kw_only=True)
class C4(DataSource):
    """One shard of C4 for calibration and training; tests on WikiText-2, C4 itself or PTB."""

    name: str
    path: str
    train_file: str
    validation_file: str
    test_on: str
    wikitext_path: str
    wikitext_config: str
    ptb_path: str
    ptb_revision: str | None
    ptb_config: str
    train_documents: int
    seqlen: int
    calibration_samples: int
    bos: bool

    def __post_init__(self) -> None:
        if self.test_on not in TESTED:
            raise ValueError(
                f"data.test_on={self.test_on} is none of {', '.join(TESTED)}; choose one of them"
            )

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        """Windows drawn from the whole shard, whatever `train_documents` is."""
        return from_documents(
            self._shard(),
            partial(encode, tokenizer),
            samples=self.calibration_samples,
            seqlen=self.seqlen,
            seed=seed,
            bos=bos_token(tokenizer, self.bos),
            key=self.key,
        )

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """Windows over the first `train_documents` documents, without the last 5 %."""
        return Examples.of(held_out_rows(self._train_windows(tokenizer))[0])

    def validation(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        """The last 5 % of the train windows: the validation shard is left for testing."""
        return Examples.of(held_out_rows(self._train_windows(tokenizer))[1])

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        """Test windows of WikiText-2 or PTB, or the first 256 of the first 1100 C4 rows."""
        bos = bos_token(tokenizer, self.bos)
        ids = encode(tokenizer, self._test_text())
        rows = windows(ids, self.seqlen, what="test", bos=bos, key=self.key)
        return rows[:C4_TEST_WINDOWS] if self.test_on == "c4" else rows

    def fingerprint(self) -> str:
        """SHA-256 of every document of the train shard, then of the test text."""
        return fingerprint_texts(chain(self._shard(), [self._test_text()]))

    def framing(self) -> Mapping[str, bool]:
        return {"bos": self.bos}

    def _shard(self) -> Sequence[str]:
        return text_column(self.path, self.train_file, split="train", column="text")

    def _train_windows(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        texts = first_documents(
            self._shard(),
            self.train_documents,
            key=f"{self.key}.train_documents",
            where=self.train_file,
        )
        bos = bos_token(tokenizer, self.bos)
        return document_windows(tokenizer, texts, self.seqlen, what="train", bos=bos, key=self.key)

    def _test_text(self) -> str:
        if self.test_on == "wikitext2":
            return wikitext(self.wikitext_path, self.wikitext_config, "test")
        if self.test_on == "ptb":
            return treebank(self.ptb_path, self.ptb_config, "test", revision=self.ptb_revision)
        rows = text_column(self.path, self.validation_file, split="validation", column="text")
        return " ".join(rows[:C4_TEST_ROWS])


@dataclass(kw_only=True)
class PennTreebank(StreamSource):
    """Penn Treebank sentences joined by a space, from the parquet files of each split."""

    name: str
    path: str
    revision: str | None
    config: str
    seqlen: int
    calibration_samples: int
    bos: bool

    def fingerprint(self) -> str:
        return fingerprint_texts(self.read(split) for split in SPLITS)

    def read(self, split: str) -> str:
        return treebank(self.path, self.config, split, revision=self.revision)


def wikitext(path: str, config: str, split: str) -> str:
    """The text of one WikiText split: train joined by a space, the others by two newlines."""
    if Path(path).is_dir():
        # A bare folder declares no configs: without a pattern it would be read as one data set.
        rows = text_column(path, f"{config}/{split}-*.parquet", split=split, column="text")
    else:
        rows = TextRows(load_rows(path, config, split=split)["text"], f"{path} {split}")
    return (" " if split == "train" else "\n\n").join(rows)


def treebank(path: str, config: str, split: str, *, revision: str | None) -> str:
    """The sentences of one split of Penn Treebank, joined by a space.

    Its files lie as the hub's parquet conversions do: config/split/0000.parquet.
    """
    files = f"{config}/{split}/*.parquet"
    return " ".join(text_column(path, files, split=split, column="sentence", revision=revision))

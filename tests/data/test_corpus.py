"""A pretraining corpus on a folder laid out like the hub repository, windows read back as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparsemend.data.base import DataSource, Examples
from sparsemend.data.corpus import Corpus

pytestmark = pytest.mark.usefixtures("empty_cache")

SHARDS = (["first one.", "second."], ["the third document", "a fourth", "and a fifth"])
HELD_OUT = ["held out text", "never read"]


class Text(DataSource):
    """A text whose windows tell that they are its own."""

    def __init__(self, mark: str = "text") -> None:
        self.name, self.seqlen, self.calibration_samples, self.mark = "text", 5, 3, mark

    def calibration(self, tokenizer: PreTrainedTokenizerBase | None, *, seed: int) -> Tensor:
        return torch.full((3, 5), seed)

    def train(self, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
        raise AssertionError("the text is not trained on")

    validation = train

    def test(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        return torch.full((2, 5), 9)

    def fingerprint(self) -> str:
        return self.mark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two train shards and a validation file, under the names of SlimPajama-6B."""
    data = tmp_path / "data"
    data.mkdir()
    for number, texts in enumerate(SHARDS):
        write(data / f"train-0000{number}-of-00002-abc.parquet", texts)
    write(data / "validation-00000-of-00001-def.parquet", HELD_OUT)
    return tmp_path


def write(path: Path, texts: list[str]) -> None:
    table = pyarrow.table({"text": texts, "meta": [{"set": "x"}] * len(texts)})
    pyarrow.parquet.write_table(table, path)


def corpus(folder: Path, text: DataSource | None = None, **changes: Any) -> Corpus:
    settings: dict[str, Any] = {
        "name": "slimpajama",
        "files": "data/train-*.parquet",
        "validation_files": "data/validation-*.parquet",
        "documents": 3,
        "validation_documents": 1,
        "seqlen": 8,
        "calibration_samples": 3,
        "bos": False,
    }
    return Corpus(path=str(folder), text=text or Text(), **{**settings, **changes})


def read(tokenizer: PreTrainedTokenizerFast, examples: Examples) -> str:
    assert torch.equal(examples.tokens, examples.labels)
    return tokenizer.decode(examples.tokens.flatten())


def test_training_reads_the_first_documents_over_the_borders_of_files(
    folder: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """10 + 7 + 18 characters are four windows of 8; the remainder of 3 is dropped."""
    train = corpus(folder).train(byte_tokenizer)
    assert train.tokens.shape == (4, 8)
    assert read(byte_tokenizer, train) == "first one.second.the third documen"[:32]


def test_every_document_begins_as_in_calibration(
    folder: Path, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    train = corpus(folder).train(bos_tokenizer)
    assert (train.tokens == bos_tokenizer.bos_token_id).sum() == 3


def test_validation_is_of_its_own_files(
    folder: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert read(byte_tokenizer, corpus(folder).validation(byte_tokenizer)) == "held out"


def test_without_files_validation_is_what_follows_the_training_documents(
    folder: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = corpus(folder, validation_files=None, validation_documents=2)
    assert read(byte_tokenizer, source.validation(byte_tokenizer)) == "a fourthand a fi"
    assert read(byte_tokenizer, source.train(byte_tokenizer)).startswith("first one.")


def test_pruning_and_test_windows_are_those_of_the_text(
    folder: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = corpus(folder)
    assert source.calibration(byte_tokenizer, seed=4).tolist() == [[4] * 5] * 3
    assert source.test(byte_tokenizer).tolist() == [[9] * 5] * 2
    assert source.task(byte_tokenizer) is None


def test_the_fingerprint_follows_what_is_read_and_the_text(folder: Path) -> None:
    seen = {
        corpus(folder).fingerprint(),
        corpus(folder, documents=4).fingerprint(),
        corpus(folder, validation_documents=2).fingerprint(),
        corpus(folder, text=Text("other")).fingerprint(),
    }
    assert len(seen) == 4
    assert corpus(folder).fingerprint() in seen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 6}, r"data.documents=6 is not in \[1, 5\], the documents of data/train"),
        (
            {"validation_files": None, "validation_documents": 3},
            r"validation_documents=3 is not in \[1, 2\].* after the first 3",
        ),
    ],
)
def test_more_documents_than_there_are_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        corpus(folder, **changes).fingerprint()


def test_two_numbers_of_calibration_windows_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.calibration_samples alone"):
        corpus(folder, calibration_samples=4)

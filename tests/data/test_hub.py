"""Hub loaders on local folders laid out like the repositories, windows read back as text."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sparsemend.data import hub
from sparsemend.data.base import Examples
from sparsemend.data.hub import C4, PennTreebank, WikiText2
from sparsemend.data.hub_files import reachable

pytestmark = pytest.mark.usefixtures("empty_cache")

Tokenizer = PreTrainedTokenizerFast

WIKITEXT = {
    "train": ["", " = Title = \n", "", " the train text of it \n", " and its end . \n"],
    "validation": ["", " a validation text \n", " more \n"],
    "test": ["", " = Test = \n", "", " the test text \n"],
}
SENTENCES = {
    "train": ["the first sentence", "a <unk> second one", "N and a third"],
    "validation": ["no choice", "was given to him"],
    "test": ["mr. <unk> is chairman", "of the group"],
}
DOCUMENTS = [
    "short",
    "a document of some length",
    "tiny\ntext",
    "another, slightly longer, document",
    "0123456789" * 30,
    "x" * 12,
]
TRAIN_FILE = "en/c4-train.00000-of-01024.json.gz"
VALIDATION_FILE = "en/c4-validation.00000-of-00008.json.gz"
# What the card of a cloned repository declares: every shard, and far more rows than one holds.
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: realnewslike
  data_files:
  - split: train
    path: realnewslike/c4-train.*.json.gz
dataset_info:
- config_name: en
  features:
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: 828589180707
    num_examples: 364868892
  - name: validation
    num_bytes: 825767266
    num_examples: 364608
---
"""


def write_parquet(path: Path, column: str, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: texts}), path)


def write_shard(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "u"} for text in texts]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def wikitext_folder(tmp_path: Path) -> Path:
    """Two configs side by side, as in the repository: the larger one must not be read."""
    folder = tmp_path / "wikitext"
    for split, texts in WIKITEXT.items():
        write_parquet(folder / f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet", "text", texts)
        write_parquet(
            folder / f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet", "text", ["other"]
        )
    return folder


@pytest.fixture
def ptb_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ptb"
    for split, texts in SENTENCES.items():
        write_parquet(folder / f"penn_treebank/{split}/0000.parquet", "sentence", texts)
    return folder


@pytest.fixture
def c4_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "c4"
    write_shard(folder / TRAIN_FILE, DOCUMENTS)
    write_shard(folder / TRAIN_FILE.replace("00000", "00001", 1), ["another shard"])
    write_shard(folder / VALIDATION_FILE, [f"row {number}" for number in range(1200)])
    return folder


def wikitext2(folder: Path, **changes: Any) -> WikiText2:
    settings = {"name": "wikitext2", "config": "wikitext-2-raw-v1", "seqlen": 8}
    return WikiText2(
        path=str(folder), **{**settings, "calibration_samples": 5, "bos": False, **changes}
    )


def ptb(folder: Path, **changes: Any) -> PennTreebank:
    settings = {"name": "ptb", "config": "penn_treebank", "revision": "refs/convert/parquet"}
    sizes: dict[str, Any] = {"seqlen": 8, "calibration_samples": 5, "bos": False}
    return PennTreebank(path=str(folder), **{**settings, **sizes, **changes})


def c4(folder: Path, **changes: Any) -> C4:
    settings: dict[str, Any] = {
        "name": "c4",
        "train_file": TRAIN_FILE,
        "validation_file": VALIDATION_FILE,
        "test_on": "c4",
        "wikitext_path": str(folder.parent / "wikitext"),
        "wikitext_config": "wikitext-2-raw-v1",
        "ptb_path": str(folder.parent / "ptb"),
        "ptb_revision": None,
        "ptb_config": "penn_treebank",
        "train_documents": len(DOCUMENTS),
        "seqlen": 8,
        "calibration_samples": 5,
        "bos": False,
    }
    return C4(path=str(folder), **{**settings, **changes})


def strings(tokenizer: Tokenizer, rows: Tensor) -> list[str]:
    """The characters of each window."""
    return [tokenizer.decode(row) for row in rows]


def cut(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(0, len(text) - length + 1, length)]


def stream_draws(text: str, *, samples: int, length: int, seed: int) -> list[str]:
    random.seed(seed)
    starts = [random.randint(0, len(text) - length - 1) for _ in range(samples)]
    return [text[start : start + length] for start in starts]


def document_draws(documents: list[str], *, samples: int, length: int, seed: int) -> list[str]:
    random.seed(seed)
    drawn = []
    for _ in range(samples):
        text = ""
        while not len(text) > length:
            text = documents[random.randint(0, len(documents) - 1)]
        start = random.randint(0, len(text) - length - 1)
        drawn.append(text[start : start + length])
    return drawn


def test_wikitext_test_rows_are_joined_by_two_newlines(
    wikitext_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = wikitext2(wikitext_folder).test(byte_tokenizer)
    assert strings(byte_tokenizer, rows) == cut("\n\n".join(WIKITEXT["test"]), 8)


def test_wikitext_validation_is_cut_like_test(
    wikitext_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = wikitext2(wikitext_folder).validation(byte_tokenizer).tokens
    assert strings(byte_tokenizer, rows) == cut("\n\n".join(WIKITEXT["validation"]), 8)


def test_wikitext_train_rows_are_joined_by_one_space(
    wikitext_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = wikitext2(wikitext_folder).train(byte_tokenizer).tokens
    assert strings(byte_tokenizer, rows) == cut(" ".join(WIKITEXT["train"]), 8)


def test_wikitext_calibration_draws_from_the_train_stream(
    wikitext_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = wikitext2(wikitext_folder).calibration(byte_tokenizer, seed=4)
    expected = stream_draws(" ".join(WIKITEXT["train"]), samples=5, length=8, seed=4)
    assert strings(byte_tokenizer, rows) == expected


def test_wikitext_has_one_bos_for_the_whole_text(
    wikitext_folder: Path, bos_tokenizer: Tokenizer
) -> None:
    rows = wikitext2(wikitext_folder).test(bos_tokenizer)
    assert (rows == bos_tokenizer.bos_token_id).nonzero().tolist() == [[0, 0]]


def test_wikitext_on_the_hub_is_asked_for_by_config_and_split(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> None:
    def load_dataset(path: str, config: str, *, split: str) -> dict[str, list[str]]:
        assert (path, config) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
        return {"text": WIKITEXT[split]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    rows = wikitext2(Path("Salesforce/wikitext")).test(byte_tokenizer)
    assert strings(byte_tokenizer, rows) == cut("\n\n".join(WIKITEXT["test"]), 8)


def test_without_hub_and_copy_a_text_that_needs_neither_is_named(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> None:
    def load_dataset(path: str, config: str, *, split: str) -> None:
        asked.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("not here")

    asked: list[bool] = []
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("sparsemend.data.hub_files.reachable", lambda: False)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match=r"Salesforce/wikitext lies on .* no copy .* data=text"):
        wikitext2(Path("Salesforce/wikitext")).test(byte_tokenizer)
    assert asked == [True]  # so that the hub is not asked again and again
    assert before == constants.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    assert not reachable()


@pytest.mark.parametrize("card", ["", C4_CARD], ids=["bare folder", "clone with its card"])
def test_c4_calibration_draws_documents_of_the_first_shard(
    c4_folder: Path, byte_tokenizer: Tokenizer, card: str
) -> None:
    if card:
        (c4_folder / "README.md").write_text(card)
    rows = c4(c4_folder, calibration_samples=20).calibration(byte_tokenizer, seed=1)
    expected = document_draws(DOCUMENTS, samples=20, length=8, seed=1)
    assert strings(byte_tokenizer, rows) == expected


def test_c4_calibration_reads_past_train_documents(
    c4_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    few = c4(c4_folder, train_documents=2).calibration(byte_tokenizer, seed=0)
    assert few.equal(c4(c4_folder).calibration(byte_tokenizer, seed=0))


def test_c4_perplexity_text_is_the_first_1100_rows_joined_by_a_space(
    c4_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = c4(c4_folder, seqlen=64).test(byte_tokenizer)
    text = " ".join(f"row {number}" for number in range(1100))
    assert strings(byte_tokenizer, rows) == cut(text, 64)


def test_c4_perplexity_reads_at_most_256_windows(
    c4_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = c4(c4_folder).test(byte_tokenizer)
    text = " ".join(f"row {number}" for number in range(1100))[: 256 * 8]
    assert strings(byte_tokenizer, rows) == cut(text, 8)


def test_c4_tests_on_all_of_wikitext_when_asked(
    c4_folder: Path,
    wikitext_folder: Path,
    byte_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "C4_TEST_WINDOWS", 1)
    rows = c4(c4_folder, test_on="wikitext2").test(byte_tokenizer)
    assert rows.equal(wikitext2(wikitext_folder).test(byte_tokenizer))


def test_c4_train_and_validation_cut_the_first_documents_in_order(
    c4_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    data = c4(c4_folder, train_documents=5)
    windows = cut("".join(DOCUMENTS[:5]), 8)
    held = int(len(windows) * 0.05)
    assert strings(byte_tokenizer, data.train(byte_tokenizer).tokens) == windows[:-held]
    assert strings(byte_tokenizer, data.validation(byte_tokenizer).tokens) == windows[-held:]


def test_every_c4_train_document_begins_with_its_bos(
    c4_folder: Path, bos_tokenizer: Tokenizer
) -> None:
    data = c4(c4_folder, train_documents=4, seqlen=2)
    rows = [data.train(bos_tokenizer).tokens, data.validation(bos_tokenizer).tokens]
    found = sum(int((part == bos_tokenizer.bos_token_id).sum()) for part in rows)
    assert found == 4


@pytest.mark.parametrize("count", [0, len(DOCUMENTS) + 1])
def test_train_documents_outside_the_shard_are_refused(
    c4_folder: Path, byte_tokenizer: Tokenizer, count: int
) -> None:
    with pytest.raises(ValueError, match=rf"train_documents={count} is not in \[1, 6\]"):
        c4(c4_folder, train_documents=count).train(byte_tokenizer)


def test_an_unknown_test_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.test_on=pile is none of wikitext2, c4, ptb"):
        c4(tmp_path, test_on="pile")


def test_c4_tests_on_the_treebanks_sentences_where_asked(
    c4_folder: Path, ptb_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    data = c4(c4_folder, test_on="ptb")
    assert strings(byte_tokenizer, data.test(byte_tokenizer)) == cut(" ".join(SENTENCES["test"]), 8)
    other = c4(c4_folder, test_on="c4")
    assert data.fingerprint() != other.fingerprint()
    drawn = [strings(byte_tokenizer, d.calibration(byte_tokenizer, seed=1)) for d in (data, other)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_ptb_sentences_are_joined_by_a_space(
    ptb_folder: Path, byte_tokenizer: Tokenizer, split: str
) -> None:
    data = ptb(ptb_folder)
    read = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    rows = read(byte_tokenizer)
    tokens = rows.tokens if isinstance(rows, Examples) else rows
    assert strings(byte_tokenizer, tokens) == cut(" ".join(SENTENCES[split]), 8)


def test_ptb_calibration_draws_from_the_train_stream(
    ptb_folder: Path, byte_tokenizer: Tokenizer
) -> None:
    rows = ptb(ptb_folder).calibration(byte_tokenizer, seed=2)
    expected = stream_draws(" ".join(SENTENCES["train"]), samples=5, length=8, seed=2)
    assert strings(byte_tokenizer, rows) == expected


def test_a_model_without_tokenizer_is_told_to_use_tokens(
    wikitext_folder: Path, c4_folder: Path, ptb_folder: Path
) -> None:
    for data in (wikitext2(wikitext_folder), c4(c4_folder), ptb(ptb_folder)):
        with pytest.raises(ValueError, match=r"needs a tokenizer.*use data=tokens"):
            data.calibration(None, seed=0)


def test_the_fingerprint_is_the_hash_of_the_joined_splits_with_their_lengths(
    wikitext_folder: Path,
) -> None:
    digest = hashlib.sha256()
    for split, separator in (("train", " "), ("validation", "\n\n"), ("test", "\n\n")):
        text = separator.join(WIKITEXT[split]).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    assert wikitext2(wikitext_folder).fingerprint() == digest.hexdigest()


def test_the_c4_fingerprint_tells_documents_apart_from_their_concatenation(
    c4_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_shard(other / TRAIN_FILE, [DOCUMENTS[0] + DOCUMENTS[1], *DOCUMENTS[2:]])
    write_shard(other / VALIDATION_FILE, [f"row {number}" for number in range(1200)])
    assert c4(c4_folder).fingerprint() != c4(other).fingerprint()


def test_the_c4_fingerprint_follows_the_test_corpus(c4_folder: Path, wikitext_folder: Path) -> None:
    on_c4 = c4(c4_folder).fingerprint()
    assert on_c4 == c4(c4_folder).fingerprint()
    assert on_c4 != c4(c4_folder, test_on="wikitext2").fingerprint()

"""The embedded corpus: what is held out stays out of train, and the same words give the same rows.

The quick tests read a small library of their own; the slow ones read all that this Python carries.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sparsemend.data import documentation as python_docs
from sparsemend.data import extension_docs
from sparsemend.data.documentation import Document, documents, library_source, split_text
from sparsemend.data.python_docs import PythonDocs

WORDS = 8


def forget() -> None:
    for cached in (documents, split_text, python_docs._held_out_shingles):
        cached.cache_clear()


def name_in(split: str, stem: str) -> str:
    """A function name whose qualified name `library.NAME` falls into a split."""
    names = (f"{stem}_{number}" for number in range(10_000))
    return next(name for name in names if Document(f"library.{name}", "", "").split == split)


SHARED = "these nine words are found in train and test"
TESTED = name_in("test", "tested")
TRAINED = name_in("train", "trained")
VALIDATED = name_in("validation", "validated")
COPIED = name_in("train", "copied")
LIBRARY = f'''"""A library of four functions, written for this test alone."""

def {TESTED}(a, b=2):
    """Held out, with a passage of its own.

    {SHARED}
    """
    return "{TESTED}"

def {TRAINED}(c):
    """A first paragraph that nothing else repeats at all.

    {SHARED}

    A last paragraph with words found in no other place.
    """
    # a comment of more than eight words that no document has anywhere
    return "{TRAINED}"

def {VALIDATED}():
    """Held out as well, and long enough for a window."""

def {COPIED}():
    """Held out, with a passage of its own.

    {SHARED}
    """
    # {SHARED}
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A standard library of one module, and neither topics nor extension modules."""
    (tmp_path / "library.py").write_text(LIBRARY)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for others in ("_topics", "_docstrings_of_extensions"):
        monkeypatch.setattr(python_docs, others, lambda: iter(()))
    forget()
    yield tmp_path
    forget()


def source(**changes: bool | int) -> PythonDocs:
    settings = {"seqlen": 16, "calibration_samples": 3, "include_source": False, "bos": False}
    return PythonDocs(
        **{"name": "python_docs", **settings, "documentation_repeats": 1, **changes}  # type: ignore[arg-type]
    )


def shingles(text: str) -> set[tuple[str, ...]]:
    """Every eight words in a row, written without the code under test."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


@pytest.mark.parametrize("name", ["os.path.join", "json", "topics.with", "abc.ABC"])
def test_the_split_is_a_hash_of_the_name_alone(name: str) -> None:
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100
    expected = "test" if bucket < 5 else "validation" if bucket < 10 else "train"
    assert Document(name, "", "one").split == Document(name, "(x)", "other").split == expected


def test_a_twentieth_of_many_names_is_tested_and_a_twentieth_validates() -> None:
    splits = [Document(f"module.name{number}", "", "").split for number in range(4000)]
    # 200 expected, standard deviation sqrt(4000 * 0.05 * 0.95) = 13.8: five of them either way.
    assert abs(splits.count("test") - 200) < 69
    assert abs(splits.count("validation") - 200) < 69


@pytest.mark.usefixtures("library")
def test_a_document_carries_name_signature_and_text() -> None:
    page = next(d.page for d in documents() if d.name == f"library.{TESTED}")
    assert page.startswith(f"library.{TESTED}(a, b=2)\n\nHeld out")


@pytest.mark.usefixtures("library")
def test_of_two_names_with_the_same_words_the_tested_one_stays() -> None:
    names = {d.name for d in documents()}
    assert f"library.{TESTED}" in names
    assert f"library.{COPIED}" not in names


@pytest.mark.usefixtures("library")
def test_a_train_paragraph_that_repeats_a_tested_one_is_dropped() -> None:
    train = split_text("train")
    assert SHARED in split_text("test")
    assert SHARED not in train
    assert "nothing else repeats at all" in train
    assert "found in no other place" in train


@pytest.mark.usefixtures("library")
def test_source_comes_without_docstrings_and_without_held_out_pieces() -> None:
    pieces = "\n".join(library_source())
    assert f'return "{TRAINED}"' in pieces
    assert "nothing else repeats" not in pieces
    assert SHARED not in pieces


@pytest.mark.usefixtures("library")
def test_windows_are_int64_rows_of_seqlen(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    data = source()
    for rows in (data.train(byte_tokenizer).tokens, data.validation(byte_tokenizer).tokens):
        assert rows.dtype == torch.int64
        assert rows.shape[1] == 16
    assert data.calibration(byte_tokenizer, seed=0).shape == (3, 16)


@pytest.mark.usefixtures("library")
def test_test_windows_are_the_test_text_in_order(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = byte_tokenizer(split_text("test"))["input_ids"]
    rows = source().test(byte_tokenizer)
    assert rows.flatten().tolist() == ids[: len(ids) // 16 * 16]


@pytest.mark.usefixtures("library")
def test_calibration_windows_are_taken_from_train(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = source().calibration(byte_tokenizer, seed=5)
    ids = torch.tensor(byte_tokenizer(split_text("train"))["input_ids"])
    windows = {tuple(window) for window in ids.unfold(0, 16, 1).tolist()}
    assert {tuple(row) for row in rows.tolist()} <= windows


@pytest.mark.usefixtures("library")
def test_documentation_repeats_before_the_source(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    once = source().train(byte_tokenizer).tokens
    rows = source(documentation_repeats=2, include_source=True).train(byte_tokenizer).tokens
    assert torch.equal(rows[: 2 * len(once)], once.repeat(2, 1))
    assert f"def {TRAINED}(c):" in byte_tokenizer.decode(rows[2 * len(once) :].flatten())


@pytest.mark.usefixtures("library")
def test_the_fingerprint_is_the_same_when_the_corpus_is_read_again() -> None:
    before = source().fingerprint()
    forget()
    assert source().fingerprint() == before


def test_the_fingerprint_follows_the_documentation(library: Path) -> None:
    before = source().fingerprint()
    (library / "library.py").write_text(LIBRARY.replace("nine words", "nine terms"))
    forget()
    assert source().fingerprint() != before


@pytest.mark.slow
def test_no_words_are_in_two_documents_of_the_whole_corpus() -> None:
    texts = [" ".join(d.text.split()) for d in documents()]
    assert len(texts) == len(set(texts)) > 1000


@pytest.mark.slow
def test_documents_come_in_the_order_of_the_hash_of_their_name() -> None:
    keys = [hashlib.sha256(d.name.encode()).digest() for d in documents()]
    assert all(first <= second for first, second in pairwise(keys))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["documentation", "source"])
def test_nothing_trained_on_shares_a_tenth_of_its_words_with_what_is_held_out(kind: str) -> None:
    held_out = shingles("")
    for document in documents():
        if document.split != "train":
            held_out |= shingles(document.page)
    trained = split_text("train").split("\n\n") if kind == "documentation" else library_source()
    for text in trained:
        found = shingles(text)
        # The threshold of the corpus: idioms of eight words are shared, sentences are not.
        assert len(found & held_out) <= 0.1 * len(found), text


def test_what_a_program_replaced_does_not_change_the_corpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracker replaces sys.exit, the command sys.excepthook, a profiler whatever it likes."""
    before = list(python_docs._docstrings_of_extensions())
    assert {"sys.exit", "math.sqrt"} <= {document.name for document in before}
    monkeypatch.setattr(sys, "exit", lambda code=0: None)
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: None)
    monkeypatch.setattr(math, "sqrt", lambda x: x)
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")  # would strip docstrings
    assert list(python_docs._docstrings_of_extensions()) == before


def test_a_fresh_process_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="embedded documentation cannot be read"):
        extension_docs.read_in_a_fresh_process()


FINGERPRINT = """
from sparsemend.data.python_docs import PythonDocs
settings = dict(seqlen=256, calibration_samples=8, include_source=False, documentation_repeats=1)
settings["bos"] = False
print(PythonDocs(name="python_docs", **settings).fingerprint())
"""


BUSY = """
import sys
import lightning, datasets, wandb
wandb.init(mode="offline", settings=wandb.Settings(silent=True))
sys.exit = sys.excepthook = sys.stdout.write
"""


@pytest.mark.slow
def test_the_fingerprint_is_that_of_a_process_which_did_nothing_before(tmp_path: Path) -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", f"{before}\n{FINGERPRINT}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[-1]
        for before in ("", BUSY)
    ]
    assert said[0] == said[1]

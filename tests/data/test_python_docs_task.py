"""The embedded task: one example per documented signature, no answer on both sides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from support.configs import compose
from transformers import AutoTokenizer

from sparsemend.config.locations import resolve_path
from sparsemend.data import documentation_examples
from sparsemend.data.bos import resolve_bos_
from sparsemend.data.documentation import Document
from sparsemend.data.documentation_examples import summary, task_examples
from sparsemend.data.prompts import Prompted
from sparsemend.data.python_docs_task import PythonDocsTask


def name_in(split: str, number: int) -> str:
    names = (f"library.{split}_{i}" for i in range(number * 1000, number * 1000 + 1000))
    return next(name for name in names if Document(name, "", "").split == split)


DOCUMENTS = (
    Document(name_in("train", 0), "(a, b=2)", "Add two\nnumbers.  Slowly.\n\nMore of it."),
    Document(name_in("train", 1), "", "A module, which has no signature."),
    Document(name_in("train", 2), "()", "Shared with a test."),
    Document(name_in("train", 3), "()", "Shared with a validation."),
    Document(name_in("validation", 0), "()", "Shared with a validation."),
    Document(name_in("validation", 1), "()", "Shared with a test."),
    Document(name_in("test", 0), "()", "Shared with a test."),
    Document(name_in("test", 1), "(x)", "Of its own."),
)


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(documentation_examples, "documents", lambda: DOCUMENTS)
    task_examples.cache_clear()
    yield
    task_examples.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return it.", "Return it."),
        ("Return\n    it\n\nAnd more.", "Return it"),
        ("Return it, e.g. here.  Then stop.", "Return it, e.g. here."),
        ("Is it?  Yes.", "Is it?"),
        ("Version 3.11 or later", "Version 3.11 or later"),
    ],
)
def test_the_summary_is_the_first_sentence_of_the_first_paragraph(text: str, expected: str) -> None:
    assert summary(text) == expected


@pytest.mark.usefixtures("few_documents")
def test_an_example_is_name_and_signature_and_then_the_summary() -> None:
    assert task_examples()["train"] == [
        Prompted(f"{DOCUMENTS[0].name}(a, b=2)\n", "Add two numbers.")
    ]


@pytest.mark.usefixtures("few_documents")
def test_an_answer_that_is_tested_is_neither_trained_on_nor_validated() -> None:
    answers = {split: [e.answer for e in found] for split, found in task_examples().items()}
    assert answers["test"] == ["Shared with a test.", "Of its own."]
    assert answers["validation"] == ["Shared with a validation."]
    assert answers["train"] == ["Add two numbers."]


@pytest.mark.slow
def test_the_embedded_documentation_gives_thousands_of_examples_that_fit() -> None:
    settings = compose("run", ["data=python_docs_task", "data.bos=false"]).data
    resolve_bos_(settings, False)
    data = instantiate(settings, _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS)
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("embedded:tiny"))
    assert isinstance(data, PythonDocsTask)
    train, task = data.train(tokenizer), data.task(tokenizer)
    assert task is not None
    # 6,500 train and 400 test examples on CPython 3.11; other versions carry a little more or less
    assert len(train) > 4000
    assert len(data.validation(tokenizer)) > 200
    assert len(task) > 200
    assert train.tokens.shape[1] == 128
    assert torch.equal(data.test(tokenizer), data.text.test(tokenizer))
    answers = {split: {e.answer for e in data.examples(split)} for split in ("train", "test")}
    assert not answers["train"] & answers["test"]

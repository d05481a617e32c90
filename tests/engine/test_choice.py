"""The form of the kernels is the processor's best, or the one that was asked for, or torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsemend.engine import choice
from sparsemend.engine.build import NoKernels
from sparsemend.engine.choice import KEY, kernels
from sparsemend.engine.library import FORMS, Kernels

PROBE = (torch.arange(5 * 70).reshape(5, 70) % 7 - 3).float()  # the matrix of choice._try


def probe(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens.float() @ PROBE.T).to(tokens.dtype)


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No decision from before, and none left to other tests."""
    monkeypatch.delenv(KEY, raising=False)
    choice._decide.cache_clear()
    yield
    choice._decide.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library for a processor whose best form is settable, and whose products are right."""
    library = SimpleNamespace(best="avx512")
    monkeypatch.setattr(choice, "load_kernels", lambda: library)
    monkeypatch.setattr(choice, "best_form", lambda library: library.best)
    monkeypatch.setattr(Kernels, "multiply", lambda self, tokens, parts: probe(tokens))
    return library


def test_the_best_form_is_taken_unless_another_is_asked_for(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = kernels()
    assert decided is not None
    assert decided.form == "avx512"
    monkeypatch.setenv(KEY, "portable")
    decided = kernels()
    assert decided is not None
    assert decided.form == "portable"


def test_torch_is_taken_when_it_is_asked_for(
    processor: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY, "torch")
    assert kernels() is None
    assert caplog.records == []


def test_another_name_is_refused_with_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "avx")
    with pytest.raises(ValueError, match=f"{KEY}=avx is not one of: portable, avx2.*torch"):
        kernels()


@pytest.mark.parametrize(
    ("best", "asked", "words"),
    [
        ("portable", "", "neither AVX2 nor AVX-512"),
        ("avx2", "avx512", "at most avx2"),
    ],
)
def test_a_processor_without_the_instructions_leaves_it_to_torch_with_one_warning(
    processor: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    best: str,
    asked: str,
    words: str,
) -> None:
    processor.best = best
    monkeypatch.setenv(KEY, asked)
    with caplog.at_level(logging.WARNING):
        assert [kernels(), kernels()] == [None, None]
    assert [words in record.getMessage() for record in caplog.records] == [True]


def test_without_a_compiler_torch_multiplies_after_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise NoKernels("no C++ compiler is on the PATH")

    monkeypatch.setattr(choice, "load_kernels", refuse)
    with caplog.at_level(logging.WARNING):
        assert [kernels(), kernels()] == [None, None]
    (record,) = caplog.records
    assert "by torch: no C++ compiler" in record.getMessage()


def test_kernels_that_multiply_wrongly_are_not_used(
    processor: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong in (torch.float32, torch.bfloat16):
        multiply = lambda self, tokens, parts, wrong=wrong: probe(tokens) + (tokens.dtype == wrong)  # noqa: E731
        monkeypatch.setattr(Kernels, "multiply", multiply)
        choice._decide.cache_clear()
        assert kernels() is None
    assert caplog.text.count("wrong products") == 2


def test_every_form_that_this_machine_can_run_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided = kernels()
    if decided is None:
        pytest.skip("no compiler here")
    for form in FORMS[: FORMS.index(decided.form) + 1]:
        monkeypatch.setenv(KEY, form)
        asked = kernels()
        assert asked is not None
        assert asked.form == form

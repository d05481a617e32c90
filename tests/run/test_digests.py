"""The key of a cached result: a user's own code in all its files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from sparsemend.pruner.wanda import Wanda
from sparsemend.run.digests import code_digest

PRUNER = "from mine_scores import score\nfrom math import sqrt\n\n\nclass Mine:\n    pass\n"
SCORES = "import json\nimport mine_constants as constants\n\n\ndef score():\n    pass\n"
FILES = {"mine_pruner": PRUNER, "mine_scores": SCORES, "mine_constants": "POWER = 2\n"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's own on Python's path."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    for name in FILES:
        sys.modules.pop(name, None)
    invalidate_caches()


def fresh_digest() -> str:
    forget()
    return code_digest(import_module("mine_pruner").Mine())


def test_the_same_files_give_the_same_digest(folder: Path) -> None:
    assert fresh_digest() == fresh_digest()


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_a_users_class_reaches_counts(folder: Path, name: str) -> None:
    before = fresh_digest()
    (folder / f"{name}.py").write_text(f"{FILES[name]}# edited, and of another length\n")
    assert fresh_digest() != before


def test_files_that_it_does_not_reach_do_not_count(folder: Path) -> None:
    before = fresh_digest()
    (folder / "mine_other.py").write_text("OTHER = 1\n")
    import_module("mine_other")
    assert fresh_digest() == before


def test_a_class_of_ours_counts_by_the_source_of_the_package_alone() -> None:
    assert code_digest(Wanda(variant=False)) == code_digest(object())

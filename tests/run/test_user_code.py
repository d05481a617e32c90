"""The key of a cached result: a user's own code in all its files, whatever is loaded."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sparsemend.pruner.wanda import Wanda
from sparsemend.run.user_code import code_digest

FILES = {
    "mine/__init__.py": "POWER = 2\n",
    "mine/pruner.py": """
from math import sqrt
from mine import POWER
from mine.scores import score
from . import helpers
from mine_constants import SIGN


class Mine:
    def __init__(self, held=None):
        self.held = held

    def __call__(self):
        from mine_late import late
        return late
""",
    "mine/scores.py": "def score():\n    return 1\n",
    "mine/helpers.py": "import json\n",
    "mine/method.py": "METHOD = 1\n",
    "mine_constants.py": "SIGN = 1\n",
    "mine_late.py": "late = 1\n",
    "mine_held.py": "class Held:\n    pass\n",
    "mine_layer.py": "from torch import nn\n\n\nclass Layer(nn.Module):\n    pass\n",
}
REACHED = sorted(set(FILES) - {"mine/method.py", "mine_held.py", "mine_layer.py"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's own on Python's path."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("mine")]:
        sys.modules.pop(name)
    invalidate_caches()


def fresh_digest(held: Any = None) -> str:
    forget()
    return code_digest(import_module("mine.pruner").Mine(held))


def edited(path: Path) -> None:
    path.write_text(f"{path.read_text()}# edited, and of another length\n")


@pytest.mark.parametrize("name", REACHED)
def test_every_file_that_a_users_class_reaches_counts(folder: Path, name: str) -> None:
    before = fresh_digest()
    assert fresh_digest() == before
    edited(folder / name)
    assert fresh_digest() != before


def test_what_else_is_loaded_does_not_count(folder: Path) -> None:
    before = fresh_digest()
    pruner = import_module("mine.pruner")
    import_module("mine.method")  # another member of the same package
    assert code_digest(pruner.Mine()) == before
    edited(folder / "mine" / "method.py")
    assert fresh_digest() == before


def test_the_class_of_what_an_object_holds_counts(folder: Path) -> None:
    def digest_of_held() -> str:
        forget()
        held = import_module("mine_held").Held()
        return code_digest(import_module("mine.pruner").Mine(held))

    before = digest_of_held()
    edited(folder / "mine_held.py")
    assert digest_of_held() != before


def test_the_code_of_a_models_inner_modules_counts(folder: Path) -> None:
    def digest_of_model() -> str:
        forget()
        return code_digest(nn.Sequential(nn.Sequential(import_module("mine_layer").Layer())))

    before = digest_of_model()
    edited(folder / "mine_layer.py")
    assert digest_of_model() != before


def test_code_in_a_zip_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for number in (1, 2):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mine_zipped.py", f"class Mine:\n    number = {number}\n")
        with monkeypatch.context() as context:
            context.syspath_prepend(path)
            digests.add(code_digest(import_module("mine_zipped").Mine()))
        forget()
    assert len(digests) == 2


def test_a_class_without_a_source_shares_nothing() -> None:
    namespace: dict[str, Any] = {"__name__": "mine_unwritten"}
    exec("class Mine:\n    pass\n", namespace)
    mine = namespace["Mine"]()
    assert code_digest(mine) != code_digest(mine)


def test_a_class_of_ours_counts_by_the_source_of_the_package_alone() -> None:
    assert code_digest(Wanda(variant=False)) == code_digest(object())

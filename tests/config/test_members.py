"""What is said of a class without importing it: its file, its name, its early checks, its yaml."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparsemend.config.locations import conf_folder
from sparsemend.config.members import checks_of, member_name, member_yaml, module_file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("sparsemend.method.losa.losa.Losa", "losa"),
        ("sparsemend.pruner.none.NoPruner", "none"),
        ("mine.own.Obd", "obd"),
        ("own.LowRankGain", "low_rank_gain"),
        ("", ""),
    ],
)
def test_ours_are_named_by_their_file_and_a_users_by_their_class(target: str, name: str) -> None:
    assert member_name(target) == name


def test_a_module_is_located_without_importing_the_packages_above_it(folder: Path) -> None:
    (folder / "outer" / "inner").mkdir(parents=True)
    for place in ("outer", "outer/inner"):
        (folder / place / "__init__.py").write_text("raise ImportError('too early')\n")
    (folder / "outer" / "inner" / "leaf.py").write_text("")
    assert module_file("outer.inner.leaf") == folder / "outer" / "inner" / "leaf.py"
    assert module_file("outer.inner") == folder / "outer" / "inner" / "__init__.py"
    assert module_file("outer.absent.leaf") is None
    assert "outer" not in sys.modules


def test_the_checks_of_a_member_lie_beside_its_module(folder: Path) -> None:
    (folder / "lone_member.py").write_text("raise ImportError('too early')\n")
    assert checks_of("lone_member.Mine") is None
    (folder / "lone_member_checks.py").write_text("def check(asked): ...\n")
    checks = checks_of("lone_member.Mine")
    assert checks is not None
    assert checks.__file__ == str(folder / "lone_member_checks.py")


def test_every_file_of_checks_of_ours_is_of_a_member() -> None:
    """Or it would never be called."""
    package = Path(sys.modules["sparsemend"].__path__[0])
    text = "\n".join(path.read_text() for path in conf_folder().rglob("*.yaml"))
    files = [path.relative_to(package.parent) for path in package.rglob("*_checks.py")]
    modules = [".".join(file.with_suffix("").parts).removesuffix("_checks") for file in files]
    assert len(modules) > 20
    assert [module for module in modules if f"_target_: {module}." not in text] == []


def test_a_yaml_has_the_keys_of_those_that_it_begins_with() -> None:
    assert member_yaml("data", "fineweb_edu")["_target_"] == "sparsemend.data.corpus.Corpus"
    assert member_yaml("data", "fineweb_edu")["name"] == "fineweb_edu"
    assert member_yaml("data", "alpaca")["text"]["name"] == "c4"

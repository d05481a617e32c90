"""Names: a class name stands once, a function's name says what it does, a local is a noun."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "sparsemend"
MODULES = sorted(PACKAGE.rglob("*.py"))
# say nothing of what they hold
EMPTY_WORDS = {"found", "known", "told", "own", "given"}
PARTICIPLE = re.compile(r"_*([a-z]+ed|built|chosen|kept|held|shown|made|written|drawn)")
NOUNS_AND_VERBS = {"seed", "speed", "feed", "embed"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes() -> Iterator[str]:
    """Every class, and every alias of a type."""
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                yield node.name
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name[:1].isupper() and not name.isupper():
                    yield name


def is_property(function: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def identifiers(path: Path) -> Iterator[str]:
    """What a module binds: variables, arguments, functions, classes, attributes of self."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_a_class_name_stands_once() -> None:
    assert [name for name, count in Counter(classes()).items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_say_what_they_stand_for(path: Path) -> None:
    words = {name.strip("_") for name in identifiers(path)}
    assert sorted(words & EMPTY_WORDS) == []
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
    verbless = [
        function.name
        for function in functions
        if (match := PARTICIPLE.fullmatch(function.name))
        and match[1] not in NOUNS_AND_VERBS
        and not is_property(function)
    ]
    assert verbless == []

"""Names: a class name stands once, a function's name says what it does, a local is a noun."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sparsemend import names

PACKAGE = Path(__file__).parents[1] / "src" / "sparsemend"
MODULES = sorted(PACKAGE.rglob("*.py"))
# say nothing of what they hold
EMPTY_WORDS = {"found", "known", "told", "own", "given"}
PARTICIPLE = re.compile(r"_*([a-z]+ed|built|chosen|kept|held|shown|made|written|drawn)")
NOUNS_AND_VERBS = {"seed", "speed", "feed", "embed"}


@cache
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


def verbless(path: Path) -> Iterator[str]:
    """Functions whose name is a participle alone, properties apart."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and not is_property(node):
            match = PARTICIPLE.fullmatch(node.name)
            if match and match[1] not in NOUNS_AND_VERBS:
                yield node.name


def test_a_class_name_stands_once() -> None:
    assert [name for name, count in Counter(classes()).items() if count > 1] == []


def test_a_name_says_what_it_stands_for() -> None:
    empty = {
        (path.name, n) for path in MODULES for n in identifiers(path) if n.strip("_") in EMPTY_WORDS
    }
    assert empty == set()


def test_the_name_of_a_function_says_what_it_does() -> None:
    assert [(path.name, name) for path in MODULES for name in verbless(path)] == []


def test_what_a_run_leaves_is_named_in_one_place() -> None:
    spellings = {
        names.RESULT,
        names.MASKS,
        names.CHECKPOINTS,
        names.LAST_CHECKPOINT,
        names.WINDOW_LOSSES,
        names.WANDB_RUN_ID,
    }
    spelled = {
        (path.name, node.value)
        for path in MODULES
        if path != Path(names.__file__)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in spellings
    }
    assert spelled == set()

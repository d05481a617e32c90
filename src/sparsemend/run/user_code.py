"""The source that stands behind an object whose class may be the user's own.

Sources are read, not imported: the imports in a file, inside functions too, lead to the next files,
so the digest of a class depends on what the files say and not on what the process has loaded.
Python's own modules and installed packages end the search; those whose version is in every key
anyway, and this package, whose source is, are left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from uuid import uuid4

from torch import nn

from sparsemend.config.values import digest

VERSIONED = {"sparsemend", "torch", "transformers"}
INSTALLED = {"site-packages", "dist-packages"}  # parts of the paths of installed packages


def code_digest(instance: object) -> str:
    """SHA-256 (hex) of every file of user's code that the classes of an object reach.

    Those are its class, the classes that this one inherits from, and those of the objects and
    submodules that it holds.  A class whose source cannot be read gives another digest each time,
    so that nothing computed with it is taken for its result.
    """
    made_of = {cls.__module__ for cls in _classes(instance)}
    tops = {name.partition(".")[0] for name in made_of}
    held = vars(instance).values() if hasattr(instance, "__dict__") else ()
    names = made_of | {cls.__module__ for each in held for cls in type(each).__mro__}
    sources: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in sources or not _is_users(name, tops):
            continue
        source = _source(name)
        if source is not None:
            sources[name] = source
            waiting += _imports(name, source)
        elif name in names:
            return digest(["unreadable", name, uuid4().hex])
    return digest(sources)


def _classes(instance: object) -> set[type]:
    """The classes of an object and of a model's submodules, with those they inherit from."""
    objects = [instance, *(instance.modules() if isinstance(instance, nn.Module) else ())]
    return {base for each in objects for base in type(each).__mro__}


def _is_users(name: str, tops: set[str]) -> bool:
    """Whether a module is the user's: of installed packages only those in `tops`."""
    top = name.partition(".")[0]
    if top in VERSIONED or top in sys.stdlib_module_names:
        return False
    spec = _spec(top)
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    installed = any(INSTALLED & set(Path(place).parts) for place in places)
    return not installed or top in tops


def _spec(name: str) -> ModuleSpec | None:
    """Where a module lies, without importing it; None where it is not found."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    parent, _, _ = name.rpartition(".")
    if not parent:
        return PathFinder.find_spec(name)
    package = _spec(parent)
    if package is None or package.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, list(package.submodule_search_locations))


def _source(name: str) -> str | None:
    """The text of a module's file, also inside a zip; "" of a folder without one; None: unknown."""
    spec = _spec(name)
    if spec is None:
        return None
    if spec.loader is None or spec.origin is None:  # a folder without __init__.py
        return "" if spec.submodule_search_locations is not None else None
    try:
        source: str | None = spec.loader.get_source(name)  # type: ignore[attr-defined]
    except (AttributeError, ImportError, OSError):
        return None
    return source


def _imports(name: str, source: str) -> Iterator[str]:
    """The modules that a file may import, each with the packages it lies in."""
    spec = _spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from _with_parents(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            # what is imported may be a module too
            yield from _with_parents([module, *(f"{module}.{a.name}" for a in node.names)])


def _with_parents(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))

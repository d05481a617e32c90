"""Docstrings of built-in and extension modules, read by introspection in a process of its own.

What a program imports changes what introspection finds: a tracker replaces `sys.exit`, a profiler
wraps a built-in.  So a fresh interpreter without site-packages (`python -I -S`) runs this file,
which needs nothing but the standard library, and prints a JSON list of [name, signature, text].
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator

SKIPPED_EXTENSIONS = {"antigravity", "this", "idlelib"}
# what even a fresh interpreter may have replaced is not documentation of Python's
REPLACED = {"sys.excepthook"}
BUILTIN_CALLABLES = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
Docstring = tuple[str, str, str]  # qualified name, signature (empty for modules), text


def read_in_a_fresh_process() -> list[Docstring]:
    """Run this file in an interpreter that has imported nothing else; what it prints.

    Raises RuntimeError where that interpreter fails.
    """
    command = [sys.executable or "python", "-I", "-S", __file__]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise RuntimeError(
            f"{' '.join(command)} failed, so the embedded documentation cannot be read: "
            f"{said.strip()[-500:]}"
        ) from error
    return [(name, signature, text) for name, signature, text in json.loads(done.stdout)]


def docstrings() -> Iterator[Docstring]:
    """The docstrings of every extension module of this interpreter, as it is now."""
    for name in sorted(sys.stdlib_module_names | set(sys.builtin_module_names)):
        if name in SKIPPED_EXTENSIONS or not _is_extension(name):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except ImportError:
            continue  # compiled without it (no Tk, no dbm): this Python lacks these documents
        yield from of_object(module, name, depth=2)


def of_object(owner: object, name: str, *, depth: int) -> Iterator[Docstring]:
    """The docstring of `owner`, called `name`, and those of what it holds, `depth` levels down."""
    text = inspect.getattr_static(owner, "__doc__", None) if depth == 2 else owner.__doc__
    if isinstance(text, types.GetSetDescriptorType):
        text = owner.__doc__
    if isinstance(text, str) and text.strip():
        yield name, _text_signature(owner), inspect.cleandoc(text).strip()
    if depth == 0 or not isinstance(owner, types.ModuleType | type):
        return
    for attribute, member in sorted(vars(owner).items()):
        private = attribute.startswith("__") and attribute.endswith("__") and depth == 2
        documented = isinstance(member, type | types.BuiltinFunctionType) or (
            depth < 2 and type(member).__name__.endswith(("descriptor", "staticmethod"))
        )
        if documented and not private and f"{name}.{attribute}" not in REPLACED:
            yield from of_object(member, f"{name}.{attribute}", depth=depth - 1)


def _text_signature(owner: object) -> str:
    signature = inspect.getattr_static(owner, "__text_signature__", None)
    if not isinstance(signature, str):
        callable_ = isinstance(owner, BUILTIN_CALLABLES)
        signature = getattr(owner, "__text_signature__", None) if callable_ else None
    return re.sub(r"\$(self|module|type)(, /)?(, )?", "", signature) if signature else ""


def _is_extension(name: str) -> bool:
    if name in sys.builtin_module_names:
        return True
    spec = importlib.util.find_spec(name)
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return spec is not None and spec.origin is not None and spec.origin.endswith(suffixes)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    json.dump(list(docstrings()), sys.stdout)

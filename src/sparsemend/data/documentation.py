"""The documentation that every CPython carries, as a corpus that needs no network.

Documents are the language-reference topics of `pydoc_data.topics`, the docstrings of the standard
library's Python files (read through `ast`, nothing is executed) and the docstrings of built-in
and extension modules (read through introspection, in a process of its own).  A hash of its
qualified name alone puts a document into train, validation or test, so it stays there on every
Python version.

Two passages with the same words are one document; text in train that repeats test or validation
(topics quote each other) is dropped paragraph by paragraph.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import starmap
from pathlib import Path

from sparsemend.data.extension_docs import read_in_a_fresh_process

SPLITS = ("train", "validation", "test")
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "_bundled"}
SHINGLE_WORDS = 8  # two texts sharing eight words in a row share a sentence, not an idiom
SEPARATOR = "\n\n\n"


@dataclass(frozen=True)
class Document:
    """One piece of documentation; `signature` is empty for topics and modules."""

    name: str
    signature: str
    text: str

    @property
    def split(self) -> str:
        """train (90 %), validation (5 %) or test (5 %), by SHA-256 of the qualified name."""
        bucket = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big") % 100
        return "test" if bucket < 5 else "validation" if bucket < 10 else "train"

    @property
    def page(self) -> str:
        return f"{self.name}{self.signature}\n\n{self.text}"


@cache
def split_text(split: str) -> str:
    """All pages of one split, joined by blank lines; train without what repeats the others."""
    pages = [d.page for d in documents() if d.split == split]
    if split == "train":
        pages = [p for p in (_without_repeats(page) for page in pages) if p]
    return SEPARATOR.join(pages)


@cache
def documents() -> tuple[Document, ...]:
    """Every distinct document, ordered by the hash of its name.

    Where several names carry the same words, the name that is held out (test before validation)
    wins, then the first in the alphabet: a passage that can be tested on is never trained on.
    """
    rank = {"test": 0, "validation": 1, "train": 2}
    best: dict[str, Document] = {}
    for document in (*_topics(), *_docstrings_of_files(), *_docstrings_of_extensions()):
        key = " ".join(document.text.split())
        if len(key) < 20:
            continue
        kept = best.get(key)
        if kept is None or (rank[document.split], document.name) < (rank[kept.split], kept.name):
            best[key] = document
    return tuple(sorted(best.values(), key=lambda d: hashlib.sha256(d.name.encode()).digest()))


def library_source() -> list[str]:
    """Top-level pieces of the standard library's source, without docstrings.

    A piece that shares more than a tenth of its word shingles with a held-out document is left
    out (comments and module texts are often copied into the reference).
    """
    held_out = _held_out_shingles()
    pieces = []
    for path in _library_files():
        source = _read(path)
        tree = _parse(source)
        if tree is None:
            continue
        lines = _without_docstrings(source, tree).split("\n")
        starts = [0, *(_first_line(node) - 1 for node in tree.body if _is_definition(node))]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            piece = "\n".join(line for line in lines[start:end] if line.strip())
            if piece and _overlap(piece, held_out) <= 0.1:
                pieces.append(piece)
    return pieces


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(f"topics.{name}", "", text.strip())


def _docstrings_of_files() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _library_files():
        tree = _parse(_read(path))
        if tree is not None:
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield from _docstrings_of_node(tree, name)


def _docstrings_of_node(node: ast.AST, name: str) -> Iterator[Document]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        signature = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = f"({ast.unparse(node.args)})"
        if text:
            yield Document(name, signature, text.strip())
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_of_node(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from _docstrings_of_node(child, name)


def _docstrings_of_extensions() -> Iterator[Document]:
    """Read in a process of its own: what this one has imported may have changed built-ins."""
    return starmap(Document, read_in_a_fresh_process())


def _library_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED_FOLDERS & set(parts) and parts[0] != "pydoc_data":
            yield path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None  # a template or a deliberately broken file, as lib2to3 carries


def _is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)


def _first_line(node: ast.stmt) -> int:
    decorators: Iterable[ast.expr] = getattr(node, "decorator_list", ())
    return min([node.lineno, *(d.lineno for d in decorators)])


def _without_docstrings(source: str, tree: ast.Module) -> str:
    """The source with the lines of every docstring blanked (line numbers stay)."""
    lines = source.split("\n")
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            for number in range(value.lineno - 1, (value.end_lineno or value.lineno)):
                lines[number] = ""
    return "\n".join(lines)


@cache
def _held_out_shingles() -> frozenset[int]:
    held_out = (d.page for d in documents() if d.split != "train")
    return frozenset(shingle for page in held_out for shingle in _shingles(page))


def _shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    count = len(words) - SHINGLE_WORDS + 1
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(count)}


def _overlap(text: str, held_out: frozenset[int]) -> float:
    """Share of the text's word shingles that a held-out document has too."""
    shingles = _shingles(text)
    return len(shingles & held_out) / len(shingles) if shingles else 0.0


def _without_repeats(page: str) -> str:
    held_out = _held_out_shingles()
    paragraphs = page.split("\n\n")
    kept = [p for p in paragraphs if _overlap(p, held_out) <= 0.1]
    return "\n\n".join(kept) if len(kept) > 1 or len(paragraphs) == 1 else ""

"""Items of the two shipped lm-eval tasks: four-way choices over the embedded documentation.

    docs_continuation  40 words of a page -> its next 12 words, or 12 words of another page
    docs_summary       a symbol's name and signature -> its summary, or that of another symbol

All come from documents of the test split, which the embedded model has never seen.  Nothing is
drawn: wrong choices and the place of the right one follow from hashes, so they are the same in
every process.  The choices of an item are about equally long, so that length does not tell them
apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

CONTEXT, CONTINUATION = 40, 12  # words
CHOICES = 4
SUMMARIES = 200  # about as many items as there are continuations; their order is that of hashes


def continuations(**_: Any) -> dict[str, Any]:
    """The split `test` of docs_continuation; the harness passes the yaml's metadata."""
    return _split(list(_stretches()))


def summaries(**_: Any) -> dict[str, Any]:
    """The split `test` of docs_summary."""
    from sparsemend.data.documentation_examples import task_examples

    triples = [(e.prompt.rstrip(), e.prompt.rstrip(), e.answer) for e in task_examples()["test"]]
    return _split(triples[:SUMMARIES])


def _stretches() -> Iterator[tuple[str, str, str]]:
    """(page, context, continuation) of stretches that follow each other without overlap."""
    from sparsemend.data.documentation import documents

    for document in documents():
        if document.split != "test":
            continue
        words = [match.span() for match in re.finditer(r"\S+", document.text)]
        for first in range(0, len(words) - CONTEXT - CONTINUATION + 1, CONTEXT + CONTINUATION):
            start, border = words[first][0], words[first + CONTEXT][0]
            end = words[first + CONTEXT + CONTINUATION - 1][1]
            yield document.name, document.text[start:border].rstrip(), document.text[border:end]


def _split(triples: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Items from (origin, context, right choice); the wrong choices come from other origins."""
    from datasets import Dataset

    rows = []
    for origin, context, right in triples:
        others = {choice for other, _, choice in triples if other != origin and choice != right}
        near = sorted(others, key=lambda c: (abs(len(c) - len(right)), _hash(context, c)))
        # of the nearest in length, so that every choice is wrong for some item and right for one
        wrong = sorted(near[:20], key=lambda choice: _hash(context, choice))[: CHOICES - 1]
        choices = sorted([right, *wrong], key=lambda choice: _hash(choice, context))
        rows.append({"context": context, "choices": choices, "gold": choices.index(right)})
    return {"test": Dataset.from_list(rows)}


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

"""Prompts and answers of the embedded documentation: a symbol's signature -> its summary.

Every document with a signature gives one example, on the side its name's hash puts it; so the
embedded model, trained on the train side alone, has never seen a test answer.  An answer that
occurs among held-out ones too ("Return self==value.") is dropped on the other side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from sparsemend.data.documentation import documents
from sparsemend.data.prompts import Prompted

RANK = ("test", "validation", "train")  # whose answers the later ones may not repeat

SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z])")


@cache
def task_examples() -> Mapping[str, list[Prompted]]:
    """Name and signature on one line, then the summary, by split."""
    by_split: dict[str, list[Prompted]] = {}
    seen: set[str] = set()
    for split in RANK:
        found = [
            Prompted(f"{d.name}{d.signature}\n", summary(d.text))
            for d in documents()
            if d.split == split and d.signature
        ]
        by_split[split] = [example for example in found if example.answer not in seen]
        seen |= {example.answer for example in found}
    return by_split


def summary(text: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = SENTENCE_END.search(paragraph)
    return paragraph[: end.end()] if end else paragraph

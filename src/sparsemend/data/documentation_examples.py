"""Prompts and answers of the embedded documentation: a symbol's signature -> its summary.

Every document with a signature gives one example, in the split that the hash of its name decides;
so the embedded model, trained on the train split alone, has never seen a test answer.  An answer
that occurs in a held-out split too ("Return self==value.") is dropped from the other one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from sparsemend.data.documentation import documents
from sparsemend.data.prompts import Prompted

RANK = ("test", "validation", "train")  # a later split may not repeat the answers of an earlier one

SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z])")


@cache
def task_examples() -> Mapping[str, list[Prompted]]:
    """Examples by split: the prompt is name and signature on one line, the answer the summary."""
    by_split: dict[str, list[Prompted]] = {}
    seen: set[str] = set()
    for split in RANK:
        examples = [
            Prompted(f"{d.name}{d.signature}\n", summary(d.text))
            for d in documents()
            if d.split == split and d.signature
        ]
        by_split[split] = [example for example in examples if example.answer not in seen]
        seen |= {example.answer for example in examples}
    return by_split


def summary(text: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    end = SENTENCE_END.search(paragraph)
    return paragraph[: end.end()] if end else paragraph

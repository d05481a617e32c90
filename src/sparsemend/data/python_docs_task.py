"""A small task that needs no network: a symbol's name and signature -> its summary.

    prompt  mailbox._PartialFile.seek(self, offset, whence=0)
    answer  Change position, possibly with respect to start or stop.

Every embedded document with a signature gives one example, on the side its name's hash puts it; so
the embedded model, trained on the train side alone, has never seen a test answer.  An answer that
occurs among held-out ones too ("Return self==value.") is dropped on the other side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sparsemend.data.prompted import PromptedSource
from sparsemend.data.prompts import Prompted
from sparsemend.data.python_docs import documents

RANK = ("test", "validation", "train")  # whose answers the later ones may not repeat
SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z])")


@dataclass(kw_only=True)
class PythonDocsTask(PromptedSource):
    """Examples of the embedded documentation, in its own order."""

    def prompted(self, split: str) -> Sequence[Prompted]:
        return task_examples()[split]


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

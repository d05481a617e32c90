"""A small task that needs no network: a symbol's name and signature -> its summary.

    prompt  mailbox._PartialFile.seek(self, offset, whence=0)
    answer  Change position, possibly with respect to start or stop.

`documentation_examples` makes the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsemend.data.documentation_examples import task_examples
from sparsemend.data.prompted import PromptedSource
from sparsemend.data.prompts import Prompted


@dataclass(kw_only=True)
class PythonDocsTask(PromptedSource):
    """Examples of the embedded documentation, in its own order."""

    def examples(self, split: str) -> Sequence[Prompted]:
        return task_examples()[split]

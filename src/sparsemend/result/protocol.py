"""The protocol of a measured number: numbers of two protocols never share a column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsemend.names import HARNESS


@dataclass(frozen=True)
class Protocol:
    """The conditions under which a number was measured."""

    metric: str
    text: str
    split: str
    seqlen: int
    dtype: str
    tokens: int
    statistics: str
    items: str = "all"  # of a zero-shot task
    shots: str = ""  # solved examples before each item; one number, or by task
    score: str = ""  # acc or acc_norm, where the name does not say
    bos: bool = False  # whether every item or window begins with the tokenizer's first token
    chat: bool = False  # whether items or examples are turns of the tokenizer's chat template
    calibration: str = "text"  # or train: calibration windows lie over the training examples

    @property
    def label(self) -> str:
        rest = "" if self.statistics == "exact" else f", statistics {self.statistics}"
        rest += "" if self.calibration == "text" else f", calibrated on {self.calibration}"
        if self.text == HARNESS:
            items = f"{self.items} items" if self.items != "all" else "all items"
            what = self.metric if self.split == HARNESS else f"{self.metric} over {self.split}"
            asked = f"{self.score}, " * bool(self.score) + f"{self.shots} shots, " * bool(
                self.shots
            )
            asked += "BOS, " * self.bos + "chat template, " * self.chat
            return f"{what}, {asked}{items} of at most {self.seqlen} tokens, {self.dtype}{rest}"
        return (
            f"{self.metric} on {self.text}/{self.split}, {self.seqlen} tokens a window, "
            + "BOS first, " * self.bos
            + "chat template, " * self.chat
            + f"{self.tokens} tokens in all, {self.dtype}{rest}"
        )


def solved_examples(tasks: Mapping[str, int] | Iterable[str]) -> Mapping[str, int]:
    """Task -> solved examples before each item; names alone, a list or `a,b`, have none."""
    if isinstance(tasks, Mapping):
        return tasks
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    return dict.fromkeys((name.strip() for name in names), 0)


def shots_of(options: Mapping[str, Any], metric: str) -> str:
    """Solved examples before each item of the task, or tasks, behind a metric; empty if unknown.

    options: the zero_shot section of a config, resolved.
    """
    suite = (options.get("suites") or {}).get(options.get("suite")) or {}
    tasks = solved_examples(options.get("tasks") or suite)
    task = metric.split("/")[1]
    asked = [tasks[task]] if task in tasks else list(tasks.values())
    same = len(set(asked)) == 1
    return str(asked[0]) if same else ", ".join(f"{t} {n}" for t, n in tasks.items())


def measured_text(data: Mapping[str, Any]) -> str:
    """The text that perplexity/test is measured on: C4 is tested on WikiText-2 unless asked."""
    inner = data.get("text")
    if isinstance(inner, Mapping):
        return measured_text(inner)
    return str(data.get("test_on", data["name"]))

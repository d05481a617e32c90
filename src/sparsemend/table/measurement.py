"""The name of a published metric in a run, the evaluation that measures it, and its unit.

    perplexity                          perplexity/test
    acc, acc_norm of a task             zero_shot/<task>/acc, zero_shot/<task>/acc_norm
    accuracy_percent of a task          zero_shot/<task>, a fraction
    acc, percent of zero_shot_average_7  zero_shot/mean/acc
    acc_norm_if_available of it         zero_shot/mean/acc_norm: acc where a task has no acc_norm

    word_perplexity of a task           zero_shot/<task>/word_perplexity, no other perplexity

A difference of rows is not one of these; its two sides are (published.sides).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import yaml

from sparsemend.config.locations import conf_folder
from sparsemend.names import HARNESS, MEAN
from sparsemend.table.published import PERCENT, Published

PERPLEXITY = "perplexity"
AVERAGE = "zero_shot_average_7"
# paper -> the suite of conf/evaluation/zero_shot.yaml whose seven tasks it averages
AVERAGED = {"atp": "atp", "sp_lora": "wanda", "rethinking": "wanda", "lsa": "atp"}
WORDS = "word_perplexity"
NAMES = ("acc", "acc_norm", WORDS)
NAMES_OF_MEANS = {"acc": "acc", PERCENT: "acc", "acc_norm_if_available": "acc_norm"}


@cache
def suites() -> dict[str, dict[str, int]]:
    """Suite of conf/evaluation/zero_shot.yaml -> task -> number of solved examples."""
    path = conf_folder() / "evaluation" / "zero_shot.yaml"
    content: dict[str, dict[str, int]] = yaml.safe_load(path.read_text(encoding="utf-8"))["suites"]
    return content


def published_shots(cell: Published) -> str | None:
    """The number of solved examples before each item of a published accuracy, as text.

    None where no suite states it.
    """
    averaged = suites().get(AVERAGED.get(cell.paper, ""), {})
    if cell.dataset == AVERAGE:
        return ", ".join(map(str, set(averaged.values()))) or None
    suites_of_paper = [
        tasks for name, tasks in suites().items() if name.split("_")[0] == cell.paper
    ]
    suites_of_paper.append(averaged)
    return next(
        (str(tasks[cell.dataset]) for tasks in suites_of_paper if cell.dataset in tasks), None
    )


@dataclass(frozen=True)
class Measurement:
    """Our name of a metric and the evaluation that measures it."""

    name: str
    evaluation: str


def measurement_of(cell: Published) -> Measurement | None:
    """Our measurement of a cell's metric; None for one that no run measures."""
    if cell.metric == PERPLEXITY:
        return Measurement("perplexity/test", PERPLEXITY)
    if cell.dataset == AVERAGE:
        name = NAMES_OF_MEANS.get(cell.metric)
        return Measurement(f"{MEAN}/{name}", HARNESS) if name and cell.paper in AVERAGED else None
    if cell.metric == PERCENT and not cell.dataset.startswith("zero_shot_average"):
        return Measurement(f"{HARNESS}/{cell.dataset}", HARNESS)
    if cell.metric in NAMES:
        return Measurement(f"{HARNESS}/{cell.dataset}/{cell.metric}", HARNESS)
    return None

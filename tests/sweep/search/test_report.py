"""The line of a search that is ready to paste."""

from __future__ import annotations

import pytest

from sparsemend.result.finished import command_line
from sparsemend.sweep.search.report import choose_searched_group, of_one_run

CHOICES = {"sparsity_schedule": "mine", "method": "lors", "search": "slope"}


@pytest.mark.parametrize(
    ("overrides", "key", "line"),
    [
        (
            ["+search=slope", "sparsity=0.7", "cache=off", "hydra.sweep.dir=out"],
            "sparsity_schedule.slope",
            "sparsemend sparsity_schedule=mine sparsity=0.7 sparsity_schedule.slope=0.5",
        ),
        (
            ["+search=rank", "method=masked_lora", "search.trials=3"],
            "method.rank",
            "sparsemend method=masked_lora method.rank=0.5",
        ),
        (["+search=amount", "resume=auto"], "sparsity", "sparsemend sparsity=0.5"),
    ],
)
def test_it_repeats_the_overrides_with_the_choice_that_has_the_key(
    overrides: list[str], key: str, line: str
) -> None:
    lines = of_one_run(choose_searched_group(overrides, key, CHOICES), key, 0.5)
    assert command_line(lines, []) == line

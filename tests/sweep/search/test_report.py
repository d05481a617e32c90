"""The line of a search that is ready to paste."""

from __future__ import annotations

import pytest

from sparsemend.result.finished import command_line
from sparsemend.sweep.search.report import of_one_run, with_choices

# as Hydra says them, without groups of which several members are chosen
USUAL = {"model": "tiny", "method": "masked_lora", "sparsity_schedule": "uniform", "cache": "sweep"}
CHOICES = {
    **USUAL,
    "sparsity_schedule": "mine",
    "method": "none",
    "cache": "off",
    "search": "slope",
}


@pytest.mark.parametrize(
    ("overrides", "key", "line"),
    [
        (
            ["+search=slope", "sparsity=0.7", "hydra.sweep.dir=out"],
            "sparsity_schedule.slope",
            "sparsemend sparsity_schedule=mine method=none sparsity=0.7 "
            "sparsity_schedule.slope=0.5",
        ),
        (
            ["+search=rank", "method=lors", "sparsity_schedule=mine", "search.trials=3"],
            "method.rank",
            "sparsemend method=lors sparsity_schedule=mine method.rank=0.5",
        ),
    ],
)
def test_it_repeats_the_overrides_with_the_choices_that_its_yaml_made(
    overrides: list[str], key: str, line: str
) -> None:
    assert command_line(of_one_run(with_choices(overrides, CHOICES), key, 0.5), []) == line


def test_it_leaves_out_the_choices_of_run_yaml() -> None:
    lines = of_one_run(with_choices(["+search=amount", "resume=auto"], USUAL), "sparsity", 0.5)
    assert command_line(lines, []) == "sparsemend sparsity=0.5"

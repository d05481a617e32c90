"""The jobs of a sweep: which of them leave a key out, and which keys Hydra gets as choices."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sparsemend.config.jobs import Choices, cells_of, defer, stated_keys
from sparsemend.errors import OverrideError

KEYS = {"none": {"method", "seed"}, "lors": {"method", "seed", "method.rank"}}


def is_choice(line: str) -> bool:
    return line.startswith(("method=", "pruner="))


def keys_of(choices: Choices) -> set[str]:
    return KEYS[choices[0].partition("=")[2]]


def test_a_key_is_left_out_of_the_jobs_without_it_and_equal_jobs_become_one() -> None:
    jobs = [[f"method={m}", f"method.rank={r}"] for m in ("none", "lors") for r in (4, 8)]
    cells = cells_of(jobs, is_choice, keys_of)
    assert cells.jobs == [
        ["method=none"],
        ["method=lors", "method.rank=4"],
        ["method=lors", "method.rank=8"],
    ]
    assert cells.ignored == {"method.rank": "method=none"}


def test_who_lacks_a_key_is_told_without_the_choices_that_do_not_matter() -> None:
    jobs = [[f"method={m}", f"pruner={p}", "method.rank=4"] for m in ("none", "lors") for p in "ab"]
    assert cells_of(jobs, is_choice, keys_of).ignored == {"method.rank": "method=none"}


def test_a_key_that_no_job_has_stays_and_so_do_equal_jobs_that_lose_nothing() -> None:
    jobs = [["method=lors", "method.rnk=4"], ["method=lors", "method.rnk=4"]]
    assert cells_of(jobs, is_choice, keys_of).jobs == jobs


def test_a_part_of_a_sweep_may_have_none_of_the_keys_that_the_whole_sweeps() -> None:
    jobs = [["method=none", "seed=0", "method.rank=4"], ["method=none", "seed=1", "method.rank=4"]]
    stated = stated_keys(["seed", "method", "method.rank"], ["method=none"], is_choice)
    assert stated == {"seed", "method.rank"}
    cells = cells_of(jobs, is_choice, keys_of, stated)
    assert cells.jobs == [["method=none", "seed=0"], ["method=none", "seed=1"]]
    assert cells.ignored == {"method.rank": "method=none"}
    whole = stated_keys(["seed", "method", "method.rnk"], ["seed=0"], is_choice)
    assert whole == set()  # what it has nowhere is a mistake


def test_an_added_key_is_left_to_every_job() -> None:
    jobs = [["method=none", "++method.rank=4"], ["method=lors", "++method.rank=4"]]
    assert cells_of(jobs, is_choice, keys_of).jobs == jobs


def deferred(lines: list[str]) -> list[str]:
    overrides = OverridesParser.create().parse_overrides(lines)
    return defer(overrides, is_choice, list(KEYS.values()))


def test_a_key_that_is_swept_already_is_left_to_the_jobs_as_it_is() -> None:
    values = ("2,4", "range(2,5)", "choice(2,4)", "interval(1,2)", "sort(3,2)")
    lines = [f"method.rank={value}" for value in values]
    assert deferred(lines) == lines


def test_null_for_some_members_only_is_refused() -> None:
    with pytest.raises(OverrideError, match=r"method\.rank=null is for some of the swept members"):
        deferred(["method=none,lors", "method.rank=null"])


def test_hydra_gets_a_key_that_is_not_everywhere_as_a_choice_of_one_value() -> None:
    lines = ["method=none,lors", "method.rank=4", "seed=1", "+method.rank=5", "~method.rank"]
    assert deferred(lines) == [
        "method=none,lors",
        "method.rank=choice(4)",
        "seed=1",
        "+method.rank=5",
        "~method.rank",
    ]

"""The suite that holds a search against its bound."""

from __future__ import annotations

from typing import Any

import pytest

from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.search import APART, WAYS, SearchCost


def suite(**changes: Any) -> SearchCost:
    settings = {"jobs": {"wanda": {"pruner": "wanda"}}, "only": None, "trials": 3}
    return SearchCost(**{**settings, "samples": 2, "windows": 1, "seqlen": 8, **changes})


@pytest.mark.slow
def test_trials_that_share_do_the_operations_of_the_bound_and_no_more(setting: Setting) -> None:
    (section,) = suite().sections(setting)
    rows = {row["label"]: row for row in section.content()["rows"]}
    assert list(rows) == list(WAYS)
    assert all(len(row["seconds"]) == setting.rounds for row in rows.values())
    assert rows[APART]["runs"] == rows[APART]["bound"] == 3
    for way in ("shared", "shared, dense"):
        assert rows[way]["runs"] == pytest.approx(rows[way]["bound"], rel=1e-12)
    # of two blocks: a dense measurement of one window, and the first block's pass of two
    assert 0.2 < rows["shared"]["shared"] < 0.5
    assert rows["shared, dense"]["runs"] < rows["shared"]["runs"] < 3


def test_only_a_pruner_has_rates_to_search(setting: Setting) -> None:
    with pytest.raises(ValueError, match=r"suite\.jobs\.dsnot is not a pruner"):
        list(suite(jobs={"dsnot": {"method": "dsnot"}}).sections(setting))

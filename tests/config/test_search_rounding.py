"""A search compares trials of equal sparsity, wherever their pruner can count."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configs import compose

from sparsemend.config.values import plain


@pytest.mark.parametrize(
    ("overrides", "rounding"),
    [
        (["+search=atp_common_difference"], "exact_budget"),
        (["+search=rank", "pruner=sparsegpt"], "exact_budget"),
        (["+search=atp_common_difference", "pattern=mixed:8"], "pruner"),
        (["+search=rank", "pattern='2:4'"], "pruner"),
        (["+search=rank", "pruner.variant=true"], "pruner"),
        (["+search=rank", "pruner=existing"], "pruner"),
        (["+search=rank", "pruner=admm", "pruner@pruner.mask=wanda"], "exact_budget"),
        (
            [
                *("+search=rank", "pruner=admm"),
                *("pruner@pruner.mask=wanda", "pruner.mask.variant=true"),
            ],
            "pruner",
        ),
        (["+search=rank", "method=dsnot", "method.start=pruner"], "pruner"),
        (["+search=atp_common_difference", "rounding=pruner"], "pruner"),
    ],
)
def test_a_search_takes_the_exact_budget_where_it_is_legal(
    overrides: list[str], rounding: str
) -> None:
    assert plain(compose("run", overrides))["rounding"] == rounding


def test_a_pruner_of_the_users_own_that_has_no_count_keeps_its_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(
        "from sparsemend.extend import Pruner\n"
        "class Plain(Pruner):\n"
        "    def statistic(self, in_features, device): return None\n"
        "class Counting(Plain):\n"
        "    def exactly(self, weight, statistic, zeros): return None\n"
        "class Heir(Counting): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, rounding in (("Plain", "pruner"), ("Heir", "exact_budget")):
        cfg = compose("run", ["+search=rank", f"pruner._target_=counting.{name}"])
        assert cfg.rounding == rounding

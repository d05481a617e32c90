"""The suite of pruners and training-free repair."""

from __future__ import annotations

from typing import Any

import pytest

from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.pruning import FLOOR, Pruning

JOBS = {
    "wanda": {"pruner": "wanda"},
    "sparsegpt": {"pruner": "sparsegpt"},
    "dsnot": {"method": "dsnot", "max_cycles": 2},
}


def suite(jobs: dict[str, dict[str, Any]], **changes: Any) -> Pruning:
    return Pruning(
        **{"jobs": jobs, "only": None, "samples": 2, "seqlen": 8, "profile": False} | changes
    )


def test_every_job_is_measured_against_the_floor_in_every_round(setting: Setting) -> None:
    (section,) = suite(JOBS).sections(setting)
    rows = section.content()["rows"]
    assert [row["label"] for row in rows] == [FLOOR, "wanda", "sparsegpt", "dsnot"]
    assert all(len(row["seconds"]) == 2 for row in rows)
    assert all(row["peak_bytes"] > 0 for row in rows)
    assert rows[0]["ratios"] == [1.0, 1.0]
    for row in rows[1:]:
        pairs = zip(row["seconds"], rows[0]["seconds"], strict=True)
        assert row["ratios"] == [own / floor for own, floor in pairs]


def test_only_leaves_the_other_jobs_out_and_a_profile_names_operators(setting: Setting) -> None:
    (section,) = suite(JOBS, only=["wanda"], profile=True).sections(setting)
    assert [row.label for row in section.rows] == [FLOOR, "wanda"]
    assert "aten::" in (setting.out / "profile_wanda.txt").read_text(encoding="utf-8")


def test_a_trained_method_is_refused_before_a_model_is_built(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setting, "model", lambda self, positions: pytest.fail("built a model"))
    with pytest.raises(
        ValueError, match=r"suite\.jobs\.full trains; measure it with suite=methods"
    ):
        list(suite({"full": {"method": "masked_full"}}).sections(setting))

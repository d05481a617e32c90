"""How counted costs grow is a property of the code, and held here."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from sparsemend.bench.suite.base import Setting, build_jobs
from sparsemend.bench.suite.scaling import AXES, JobSize, Scaling, counts, exponent

JOBS = {
    "wanda": {"pruner": "wanda"},
    "sparsegpt": {"pruner": "sparsegpt", "block_size": 16},
    "dsnot": {"method": "dsnot", "max_cycles": 2},
}


def test_an_exponent_is_that_of_a_power() -> None:
    assert exponent([2, 4, 8], [3 * 2**1.5, 3 * 4**1.5, 3 * 8**1.5]) == pytest.approx(1.5)
    assert math.isnan(exponent([2, 4], [0, 1]))


def test_wider_matrices_take_wandas_operations_but_no_more_calls(setting: Setting) -> None:
    wanda = build_jobs(JOBS, ["wanda"], [])["wanda"]
    narrow, wide = (counts(setting, wanda, JobSize(width, 2, 16, 2)) for width in (16, 32))
    assert wide["operations"] == 4 * narrow["operations"]
    # the first work of a process asks for a few more or less
    assert wide["calls"] == pytest.approx(narrow["calls"], rel=0.02)


# least and most, by axis and job: operations, bytes besides the model, calls.  Blocks: the last one
# is observed and not propagated, 2 L - 1 passes.  SparseGPT's Hessians grow with the width alone.
# DSnoT loads the dense model, and its supports move whatever the samples.
ABOUT_1, AT_MOST_1, CONSTANT = (0.95, 1.05), (0.0, 1.0), (-0.02, 0.1)
HELD: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "hidden": {
        "wanda": ((1.99, 2.01), (0.9, 2.0), CONSTANT),
        "sparsegpt": ((2.01, 3.0), (0.9, 2.0), AT_MOST_1),
        "dsnot": ((1.99, 2.01), (0.9, 2.0), CONSTANT),
    },
    "blocks": {
        "wanda": ((1.1, 1.25), CONSTANT, ABOUT_1),
        "sparsegpt": ((1.1, 1.25), CONSTANT, ABOUT_1),
        "dsnot": ((1.1, 1.25), AT_MOST_1, ABOUT_1),
    },
    "seqlen": {
        "wanda": (ABOUT_1, AT_MOST_1, CONSTANT),
        "sparsegpt": ((0.8, 1.0), AT_MOST_1, CONSTANT),
        "dsnot": (ABOUT_1, AT_MOST_1, CONSTANT),
    },
    "samples": {
        "wanda": (ABOUT_1, AT_MOST_1, AT_MOST_1),
        "sparsegpt": ((0.8, 1.0), AT_MOST_1, AT_MOST_1),
        "dsnot": (ABOUT_1, AT_MOST_1, AT_MOST_1),
    },
}


@pytest.mark.slow  # the test above for every job and axis
def test_counted_costs_grow_as_stated(setting: Setting) -> None:
    sizes: dict[str, Any] = {"hidden": [16, 32], "blocks": [2, 4], "seqlen": [64, 128]}
    suite = Scaling(jobs=JOBS, only=None, **sizes, samples=[4, 8])
    sections = list(suite.sections(replace(setting, rounds=1)))
    for axis, section in zip(AXES, sections, strict=True):
        for row in section.rows:
            grown = row.figures["exponents"]
            for cost, (least, most) in zip(
                ("operations", "bytes", "calls"), HELD[axis][row.label], strict=True
            ):
                assert least <= grown[cost] <= most, (axis, row.label, cost, grown)
            assert math.isfinite(grown["time"])
            assert len(row.seconds) == 1

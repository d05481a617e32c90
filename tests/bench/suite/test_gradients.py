"""The suite that holds LoRS' gradient beside the exact one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.gradients import DECAYING, EXACT, FLAT, UNRELATED, Gradients


def test_the_cosine_falls_with_density_and_rises_with_alignment(setting: Setting) -> None:
    setting = replace(setting, shape=replace(setting.shape, hidden=128))
    suite = Gradients(densities=[0.5, 0.2], rank=4, grad_mode="ste")
    dense, sparse = (section.rows[1].figures["cosine"] for section in suite.sections(setting))
    # 512 independent entries per factor: a standard error of 0.044
    assert dense[UNRELATED] == pytest.approx(0.5**0.5, abs=0.13)
    assert sparse[UNRELATED] == pytest.approx(0.2**0.5, abs=0.13)
    for kind in (UNRELATED, FLAT, DECAYING):
        assert sparse[kind] < dense[kind] < 1
    for cosines in (dense, sparse):
        assert cosines[UNRELATED] < cosines[FLAT] < cosines[DECAYING]


def test_the_exact_gradient_agrees_with_itself_and_is_the_baseline(setting: Setting) -> None:
    (section,) = Gradients(densities=[0.5], rank=2, grad_mode="ste").sections(setting)
    exact = section.rows[0]
    assert section.baseline == exact.label == EXACT
    assert exact.figures["cosine"][UNRELATED] == pytest.approx(1, abs=1e-5)
    assert len(section.ratios(section.rows[1])) == setting.rounds


def test_a_gradient_that_is_not_rearranged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grad_mode 'exact' is not one of: ste, released"):
        Gradients(densities=[0.5], rank=2, grad_mode="exact")

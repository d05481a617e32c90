"""Rates of units as an allocation."""

from __future__ import annotations

import logging

import pytest

from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.rates.units import Units


def test_a_mixed_pattern_keeps_one_of_every_group_and_the_mean(
    caplog: pytest.LogCaptureFixture,
) -> None:
    units = Units({"0": ["0.q"], "1": ["1.q"]}, {"0.q": 1000, "1.q": 4000}, "block")
    with caplog.at_level(logging.WARNING):
        allocation = units.allocation([0.0, 1.0], 0.8, Pattern.parse("mixed:8"))
    assert dict(allocation) == {"0.q": 4 / 8, "1.q": 7 / 8}  # (1000 * 4 + 4000 * 7) / 8 = 4000
    assert "1 of 2 rates above 0.875 were clipped and all rates shifted" in caplog.text

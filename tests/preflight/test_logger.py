"""A logger's yaml gives it a section of its own."""

from __future__ import annotations

import pytest
from support.configs import compose

from sparsemend.preflight import check as preflight


def test_a_logger_without_a_section_of_its_own_is_refused_with_the_line_to_add() -> None:
    cfg = compose("run", ["++logger.level=3"])
    with pytest.raises(ValueError, match=r"logger\.level is not a logger.*@package logger\.NAME"):
        preflight.check(cfg)

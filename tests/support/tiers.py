"""Which members of a long table the default tier takes; all of them run in one of the two."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def slow_but_for(values: Iterable[Any], quick: Collection[Any]) -> list[Any | ParameterSet]:
    """`values` for parametrize, of which only those in `quick` are not slow."""
    values = list(values)
    assert all(value in values for value in quick), "a quick member is none of the table's"
    rows = ((value, value if isinstance(value, tuple) else (value,)) for value in values)
    return [v if v in quick else pytest.param(*row, marks=pytest.mark.slow) for v, row in rows]

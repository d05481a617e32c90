"""A composed config as plain data, and the keys of override lines."""

from __future__ import annotations

import pytest

from sparsemend.config.values import override_key


@pytest.mark.parametrize("line", ["seed=1", "+seed=1", "++seed=1", "~seed", "seed=a=b"])
def test_every_spelling_of_an_override_has_its_key(line: str) -> None:
    assert override_key(line) == "seed"

"""The suite that holds the fused operator beside a copy."""

from __future__ import annotations

from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.merge import COPY, FUSED, Merge


def test_the_operator_stands_beside_a_copy_of_almost_as_many_bytes(setting: Setting) -> None:
    suite = Merge(dtypes=["bfloat16"], rows=64, columns=512, rank=1, calls=2, clock="wall")
    (section,) = suite.sections(setting)
    rows = {row.label: row for row in section.rows}
    assert section.baseline == COPY
    assert {len(row.seconds) for row in rows.values()} == {setting.rounds}
    assert rows[COPY].figures["bytes_per_weight"] == 4
    # a bit per weight, and factors of one row and one column
    assert rows[FUSED].figures["bytes_per_weight"] == 4 + 1 / 8 + 4 * (64 + 512) / (64 * 512)

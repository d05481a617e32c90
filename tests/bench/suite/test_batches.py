"""The suite that says what padding costs."""

from __future__ import annotations

from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.batches import GROUPED, TRIMMED, WHOLE, Batches


def test_every_kind_reads_the_same_real_tokens_with_less_and_less_padding(
    setting: Setting,
) -> None:
    suite = Batches(
        method={"method": "masked_lora", "rank": 2},
        examples=32,
        windows=2,
        seqlen=48,
        median_length=8,
        spread=0.8,
    )
    (section,) = suite.sections(setting)
    rows = {row.label: row.figures for row in section.rows}
    assert section.baseline == WHOLE
    assert rows[WHOLE]["tokens"] == 32 * 48
    assert len({figures["real_tokens"] for figures in rows.values()}) == 1
    assert rows[GROUPED]["real_tokens"] < rows[GROUPED]["tokens"] < rows[TRIMMED]["tokens"]
    assert rows[TRIMMED]["tokens"] < rows[WHOLE]["tokens"]
    assert {len(row.seconds) for row in section.rows} == {setting.rounds}

"""The suite that compares streamed with stored similarity."""

from __future__ import annotations

import pytest
import torch

from sparsemend.bench.suite.base import Setting
from sparsemend.bench.suite.similarity import FLOOR, SimilaritySuite, similarity_of_stored
from sparsemend.blocks.walk import Calibration
from sparsemend.sparsity_schedule.rates.similarity import block_similarity


@pytest.mark.parametrize("pairwise", [False, True])
def test_what_is_compared_gives_the_same_numbers(setting: Setting, pairwise: bool) -> None:
    model, windows = setting.model(8), setting.tokens(6, 8)
    found = similarity_of_stored(model, windows, pairwise=pairwise)
    # Gram matrices of fp32 products, strips of them against whole ones
    torch.testing.assert_close(
        found, block_similarity(model, Calibration(windows.split(1)), 6), atol=1e-5, rtol=0
    )


def test_every_way_is_measured_against_the_pass(setting: Setting) -> None:
    (section,) = SimilaritySuite(samples=6, seqlen=8).sections(setting)
    rows = {row.label: row for row in section.rows}
    assert list(rows) == [FLOOR, "streamed", "stored_once", "stored"]
    assert all(len(row.seconds) == setting.rounds for row in section.rows)
    assert rows["stored"].figures["peak_bytes"] > rows["streamed"].figures["peak_bytes"]

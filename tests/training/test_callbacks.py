"""What a fit says of itself where no terminal shows a bar."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

import pytest
from support import contracts

from sparsemend import terminal
from sparsemend.terminal import StageLines


def test_a_fit_says_its_step_its_pace_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    method, bench = contracts.method_of("masked_lora"), contracts.bench_for(tmp_path)
    model = contracts.pruned_model()  # walks, which say how far they are too
    clock = count(0, 40)  # a look at the clock costs 40 seconds
    monkeypatch.setattr(terminal, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(StageLines, "latest", None)
    caplog.set_level(logging.INFO, "sparsemend.terminal")
    method.repair(model, bench)
    pace = round(2 * bench.train.tokens.shape[1] / 40)  # a step reads 2 windows
    said = [r.getMessage() for r in caplog.records if r.name == terminal.__name__]
    assert said == [
        f"training step 1/3  {pace} tokens/s  80 s left",
        f"training step 2/3  {pace} tokens/s  40 s left",
        f"training step 3/3  {pace} tokens/s  0 s left",
        "validation batch 1/2  40 s left",
        "validation batch 2/2  0 s left",
    ]

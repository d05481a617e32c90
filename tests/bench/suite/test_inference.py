"""The suite that holds packed products beside dense ones."""

from __future__ import annotations

import pytest
import torch

from sparsemend.bench.suite import inference
from sparsemend.bench.suite.base import Section, Setting
from sparsemend.bench.suite.inference import BASELINE, OURS, READ, Inference
from sparsemend.engine import choice
from sparsemend.engine.choice import kernels


def section(setting: Setting, inputs: int = 1, clock: str = "wall") -> Section:
    suite = Inference(densities=[0.3], rows=24, columns=80, inputs=inputs, calls=2, clock=clock)
    (only,) = suite.sections(setting)
    return only


def test_every_row_is_timed_in_every_round_after_it_gave_the_product(setting: Setting) -> None:
    for inputs, clock in ((1, "wall"), (13, "cpu")):
        rows = {row.label: row for row in section(setting, inputs, clock).rows}
        assert [row.refused for row in rows.values()] == [None] * len(rows)
        assert {len(row.seconds) for row in rows.values()} == {setting.rounds}
        assert rows["packed bfloat16"].figures["nbytes"] < rows[BASELINE].figures["nbytes"] / 2
        assert 0 < rows["packed int8"].figures["off"] <= 2**-8  # one rounding to bfloat16
        if kernels() is not None:
            assert {OURS, READ} < set(rows)


def test_a_row_with_another_output_is_refused(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = inference.multiply
    monkeypatch.setattr(inference, "multiply", lambda k, x, factor: 1.1 * multiply(k, x, factor))
    rows = {row.label: row for row in section(setting).rows}
    assert rows["packed float32"].refused is not None
    assert "of its norm off the product" in rows["packed float32"].refused
    assert rows["packed float32"].seconds == []
    assert rows[BASELINE].refused is None


def test_without_kernels_torch_stands_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.KEY, "torch")
    labels = [row.label for row in section(setting).rows]
    assert OURS not in labels
    assert READ not in labels
    assert "packed bfloat16" in labels


def test_reading_reads_every_word() -> None:
    chosen = kernels()
    if chosen is None:
        pytest.skip("no compiler here")
    numbers = torch.arange(600_001)
    assert chosen.read(numbers) == int(numbers.sum())

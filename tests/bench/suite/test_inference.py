"""The suite that holds packed products beside dense ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsemend.bench.suite import card, inference
from sparsemend.bench.suite.base import Section, Setting
from sparsemend.bench.suite.card import CardCall, calls_on_card
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


class Clocked:
    """In the place of a graph on a card, which no CPU has."""

    def __init__(self, works: list[Callable[[], object]], device: torch.device) -> None:
        self.count = len(works)

    def seconds(self) -> float:
        return float(self.count)


def test_on_a_card_the_products_are_the_cards(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def on_cpu(x: Tensor, weight: Tensor, device: torch.device, read: str) -> Iterator[CardCall]:
        devices.append(device.type)
        return calls_on_card(x, weight, torch.device("cpu"), read)

    monkeypatch.setattr(card, "multiplied_by_triton", lambda device: False)
    monkeypatch.setattr(inference, "calls_on_card", on_cpu)
    monkeypatch.setattr(inference, "Replayed", Clocked)
    table = section(replace(setting, device=torch.device("cuda")))
    rows = {row.label: row for row in table.rows}
    assert devices == ["cuda", "cuda"]
    assert table.title.endswith("kernels cuda")
    assert rows[BASELINE].seconds == [2.0] * setting.rounds
    assert 0 < rows[BASELINE].figures["off"] <= 2**-8
    assert rows[READ].figures["nbytes"] == rows[BASELINE].figures["nbytes"]
    assert rows["torch 2:4 bfloat16"].refused == "2:4 products exist on CUDA devices only"
    assert "no Triton kernel" in str(rows["packed int8"].refused)
    assert OURS not in rows


def test_reading_reads_every_word() -> None:
    chosen = kernels()
    if chosen is None:
        pytest.skip("no compiler here")
    numbers = torch.arange(600_001)
    assert chosen.read(numbers) == int(numbers.sum())

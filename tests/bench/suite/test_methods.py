"""The suite of trained methods: rows, order, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsemend.bench.suite import methods as module
from sparsemend.bench.suite.base import Section, Setting
from sparsemend.bench.suite.methods import Methods

FULL = {"method": "masked_full"}


def suite(labels: dict[str, dict[str, Any]], baseline: str, **changes: Any) -> Methods:
    values = {
        "at_step": {},
        "only": None,
        "tokens": [[2, 8]],
        "activation_checkpointing": [False],
        **changes,
    }
    return Methods(methods=labels, baseline=baseline, **values)


def measured(
    suite: Methods, setting: Setting, monkeypatch: pytest.MonkeyPatch, clock: Callable[[int], float]
) -> list[Section]:
    """The sections with the n-th timed step (0-based) taking clock(n) seconds."""
    calls: list[int] = []

    def timed(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
        calls.append(1)
        work()
        return clock(len(calls) - 1), 7

    monkeypatch.setattr(module, "time_and_peak", timed)
    return list(suite.sections(setting))


def test_rows_are_timed_in_turn_and_compared_within_a_round(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = suite({"one": FULL, "two": FULL}, "two")
    (section,) = measured(both, setting, monkeypatch, clock=lambda n: [1.0, 2.0, 9.0, 3.0][n])
    base, other = section.content()["rows"]
    assert (base["label"], other["label"]) == ("two", "one")
    assert base["seconds"] == [1.0, 3.0]  # first in round 1, last in round 2
    assert other["seconds"] == [2.0, 9.0]
    assert other["ratios"] == [2.0, 3.0]


def test_every_micro_batch_and_checkpointing_is_a_section(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = suite(
        {"one": FULL}, "one", tokens=[[2, 8], [1, 4]], activation_checkpointing=[False, True]
    )
    sections = measured(one, setting, monkeypatch, clock=lambda n: 1.0)
    assert [section.title for section in sections] == [
        "2 x 8 tokens",
        "1 x 4 tokens",
        "2 x 8 tokens, activation checkpointing",
        "1 x 4 tokens, activation checkpointing",
    ]
    forward = [section.rows[0].figures["forward_flops"] for section in sections]
    assert forward[0] > forward[1]
    assert forward[:2] == forward[2:]


def test_company_does_not_change_a_methods_figures(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"method": "masked_lora"}
    together = suite({"lora": lora, "full": FULL, "again": lora}, "lora")
    (section,) = measured(together, setting, monkeypatch, clock=lambda n: 1.0)
    (alone,) = measured(suite({"full": FULL}, "full"), setting, monkeypatch, clock=lambda n: 1.0)
    first, full, again = (row.figures for row in section.rows)
    assert first == again
    assert full == alone.rows[0].figures
    assert full != first


def test_only_adds_to_the_baseline() -> None:
    labels = {"a": FULL, "b": FULL, "c": FULL}
    assert suite(labels, "b", only=["c"]).labels() == ["b", "c"]
    assert suite(labels, "b").labels() == ["b", "a", "c"]


def test_a_method_that_refuses_the_model_is_a_row_with_its_reason(
    half_precision: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = suite({"lora": {"method": "masked_lora"}, "full": FULL}, "lora")
    (section,) = measured(both, half_precision, monkeypatch, clock=lambda n: 1.0)
    lora, full = section.rows
    assert lora.refused is None
    assert lora.seconds == [1.0, 1.0]
    assert full.refused is not None
    assert "float32" in full.refused
    assert (full.seconds, full.figures) == ([], {})


def test_running_out_of_memory_ends_a_row_and_not_the_bench(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(call: int) -> float:
        if call == 1:
            raise torch.OutOfMemoryError("tried to allocate too much\nand so on")
        return 1.0

    both = suite({"one": FULL, "two": FULL}, "one")
    (section,) = measured(both, setting, monkeypatch, clock)
    one, two = section.rows
    assert (one.refused, one.seconds) == (None, [1.0, 1.0])
    assert (two.refused, two.seconds) == ("tried to allocate too much", [])


def test_a_method_without_training_is_refused_before_a_model_is_built(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setting, "model", lambda self, positions: pytest.fail("built a model"))
    with pytest.raises(ValueError, match=r"suite\.methods\.swap is DSnoT, which trains nothing"):
        list(suite({"swap": {"method": "dsnot"}}, "swap").sections(setting))


def test_a_label_may_be_measured_at_a_step_that_does_more(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEFT within a window forms dense gradients, which cost operations and memory."""
    deltas = {"method": "seft", "budget": {"match": "density", "density": 0.05}}
    both = suite({"outside": deltas, "inside": deltas}, "outside", at_step={"inside": 1})
    (section,) = measured(both, setting, monkeypatch, clock=lambda n: 1.0)
    outside, inside = section.content()["rows"]
    assert inside["backward_flops"] > outside["backward_flops"]
    assert inside["peak_bytes"] > outside["peak_bytes"]
    assert inside["trained_parameters"] == outside["trained_parameters"]

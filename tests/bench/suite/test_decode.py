"""The suite that times steps of a whole model, dense and packed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsemend.bench.suite import decode
from sparsemend.bench.suite.base import Section, Setting
from sparsemend.bench.suite.decode import BASELINE, OURS, PACKED, Decode
from sparsemend.engine import choice
from sparsemend.engine.choice import kernels


def sections(setting: Setting, lengths: list[int], clock: str = "wall") -> list[Section]:
    return list(Decode(lengths=lengths, context=3, clock=clock).sections(setting))


def test_steps_of_every_length_give_the_dense_logits_in_fewer_bytes(
    half_precision: Setting,
) -> None:
    setting = replace(half_precision, sparsity=0.7)
    lengths = [1, 4, 9]
    for section, length in zip(sections(setting, lengths), lengths, strict=True):
        rows = {row.label: row for row in section.rows}
        assert [row.refused for row in rows.values()] == [None] * len(rows)
        assert {len(row.seconds) for row in rows.values()} == {setting.rounds}
        assert rows[BASELINE].figures["off"] == 0
        assert rows[PACKED].figures["tokens"] == length
        assert rows[PACKED].figures["nbytes"] < rows[BASELINE].figures["nbytes"]
        if kernels() is not None:
            assert rows[OURS].figures["nbytes"] == rows[BASELINE].figures["nbytes"]
            assert rows[PACKED].figures["median_ratio_to_ours"] > 0


def test_a_step_leaves_its_cache_as_it_was(setting: Setting) -> None:
    model = setting.model(8)
    tokens = setting.tokens(1, 8)
    with torch.inference_mode():
        step = decode.Step(model, tokens[:, :5])
        whole = model(tokens).logits[:, -1]
        for _ in range(2):
            assert torch.allclose(step(tokens[:, 5:]), whole, atol=1e-5)


def test_a_model_with_other_logits_is_refused(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = decode.pack_linears_

    def pack_and_change(model: torch.nn.Module, **how: object) -> None:
        names = pack(model, **how)  # type: ignore[arg-type]
        model.get_submodule(names[0]).values.mul_(1.5)

    monkeypatch.setattr(decode, "pack_linears_", pack_and_change)
    rows = {row.label: row for row in sections(setting, [2], "cpu")[0].rows}
    assert "off the dense ones" in str(rows[PACKED].refused)
    assert rows[PACKED].seconds == []
    assert rows[BASELINE].refused is None


def test_without_kernels_torch_multiplies_both(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.KEY, "torch")
    (section,) = sections(setting, [2])
    assert [row.label for row in section.rows] == [BASELINE, PACKED]

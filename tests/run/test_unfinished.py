"""A measurement goes on after what an earlier attempt kept of it, with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.evaluation_inputs import evaluation_input
from support.families import random_model
from torch import Tensor

from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.evaluation.perplexity import Perplexity
from sparsemend.names import METRIC
from sparsemend.result.resume import LEFT, _has_work
from sparsemend.run import unfinished
from sparsemend.run.unfinished import UnfinishedRows


class Interrupted(Exception):
    pass


def labelled(tokens: Tensor) -> Examples:
    labels = tokens.clone()
    labels[:, :5] = UNLABELLED
    return Examples(tokens, labels)


@pytest.mark.parametrize("last", [3, 6, 8])  # in the test windows, the task, the validation
def test_an_interrupted_perplexity_goes_on_bit_equal(
    last: int, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    model = random_model("llama")
    evaluation = Perplexity(
        validation=True,
        windows=None,
        examples=None,
        logits_fp32=True,
        chunk_tokens=16,
        logits_bytes=10**9,
    )

    def attempt(folder: Path, calls_left: int) -> tuple[dict[str, float], Tensor, int]:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls > calls_left:
                raise Interrupted

        inputs = evaluation_input(
            tokens,
            batch_size=2,
            task=labelled(tokens[:5]),
            validation=labelled(tokens[2:6]),
            unfinished=UnfinishedRows(folder, "key"),
        )
        hook = model.register_forward_pre_hook(count)
        try:
            return evaluation(model, inputs), inputs.window_losses[METRIC], calls
        finally:
            hook.remove()

    metrics, losses, calls = attempt(tmp_path / "one", 99)
    assert calls == 4 + 3 + 2
    with pytest.raises(Interrupted):
        attempt(tmp_path / "two", last)
    again, same, calls = attempt(tmp_path / "two", 99)
    assert calls == 9 - last
    assert again == metrics
    assert torch.equal(same, losses)


def test_what_is_kept_of_other_inputs_or_is_broken_is_not_taken(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path, "key")
    rows.kept -= unfinished.EVERY
    rows.keep("test", 3, lambda: torch.arange(3.0))
    begun = UnfinishedRows(tmp_path, "key").begun("test")
    assert begun is not None
    assert (begun[0], begun[1].tolist()) == (3, [0.0, 1.0, 2.0])
    assert UnfinishedRows(tmp_path, "other").begun("test") is None
    assert rows.begun("task") is None
    for path in (tmp_path / "begun").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert rows.begun("test") is None
    rows.forget()
    assert list((tmp_path / "begun").iterdir()) == []


def test_a_file_is_written_only_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(unfinished, "monotonic", lambda: now)
    rows, written = UnfinishedRows(tmp_path, "key"), []

    def take(number: int) -> Tensor:
        written.append(number)
        return torch.zeros(number)

    for number in range(1, 10):
        now += 10
        rows.keep("test", number, lambda number=number: take(number))
    assert written == [3, 6, 9]


def test_a_measurement_under_way_is_work_to_continue(tmp_path: Path) -> None:
    rows = UnfinishedRows(tmp_path / "stages", "key")
    assert not _has_work(tmp_path)
    rows.kept -= unfinished.EVERY
    rows.keep("test", 1, lambda: torch.zeros(1))
    assert _has_work(tmp_path)
    assert "stages" in LEFT  # a fresh run in this folder removes it

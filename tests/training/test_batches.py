"""How the windows of a step are shared out over processes and micro-batches."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from support.families import random_model
from torch import Tensor

from sparsemend.data.base import UNLABELLED, Examples, labelled_lengths, trim
from sparsemend.training.batches import (
    Grouping,
    Order,
    SteppedBatches,
    StepSplit,
    loader,
    mean_loss,
    next_token_loss,
)


def read(**settings: int | None) -> list[list[list[int]]]:
    """The rows of steps 1 to 4 out of 7, each a list of micro-batches."""
    split = StepSplit(windows=6, **{"micro_batch": None, **settings})  # type: ignore[arg-type]
    batches = list(SteppedBatches(Order(7, seed=1), split, steps=5, start=lambda: 1))
    assert len(batches) == 4 * split.count
    return [batches[i : i + split.count] for i in range(0, len(batches), split.count)]


@pytest.mark.parametrize(
    ("micro_batch", "sizes"), [(None, [6]), (9, [6]), (6, [6]), (4, [4, 2]), (1, [1] * 6)]
)
def test_a_step_is_split_into_micro_batches_of_which_the_last_may_be_smaller(
    micro_batch: int | None, sizes: list[int]
) -> None:
    whole, steps = read(), read(micro_batch=micro_batch)
    assert [[len(rows) for rows in step] for step in steps] == [sizes] * 4
    assert [list(chain(*step)) for step in steps] == [step[0] for step in whole]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_read_together_what_one_reads(world: int) -> None:
    shares = [read(rank=rank, world=world, micro_batch=2) for rank in range(world)]
    for step, (rows,) in enumerate(read()):
        together = [row for share in shares for part in share[step] for row in part]
        assert sorted(together) == sorted(rows)


@pytest.mark.parametrize(
    ("windows", "world", "choices"), [(6, 4, "4 or method.windows_per_step=8"), (2, 4, "4")]
)
def test_windows_that_devices_cannot_share_evenly_are_refused(
    windows: int, world: int, choices: str
) -> None:
    choices = choices.replace("method.windows_per_step=", "")
    with pytest.raises(ValueError, match=rf"hardware\.devices={world}; set .*step={choices}$"):
        StepSplit(windows=windows, micro_batch=None, world=world)


def test_a_micro_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hardware\.micro_batch 0 is below 1"):
        StepSplit(windows=6, micro_batch=0)


def padded(*lengths: int, window: int = 48) -> Examples:
    """Rows of random tokens of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 96, (len(lengths), window), generator=generator)
    labels = tokens.clone()
    for row, length in enumerate(lengths):
        tokens[row, length:], labels[row, length:] = 2, UNLABELLED
    return Examples(tokens, labels)


def mean_losses(examples: Examples) -> tuple[Tensor, Tensor]:
    """The loss over whole windows, and over those that are trimmed."""
    model = random_model("llama")
    with torch.no_grad():
        whole = next_token_loss(model, examples.tokens, examples.labels)
        return whole, next_token_loss(model, *trim(examples.tokens, examples.labels))


def test_a_batch_is_as_long_as_its_longest_example() -> None:
    examples = padded(5, 9, 7, 20)
    batches = [[0, 1], [3, 2], [0]]
    assert [tuple(b.shape) for b, _ in loader(examples, batches)] == [(2, 9), (2, 20), (1, 5)]
    for rows, (tokens, labels) in zip(batches, loader(examples, batches), strict=True):
        assert torch.equal(tokens, examples.tokens[rows][:, : tokens.shape[1]])
        assert torch.equal(labels, examples.labels[rows][:, : tokens.shape[1]])
    assert [b.shape[1] for b, _ in loader(examples, batches, whole=True)] == [48] * 3


def test_padding_that_is_cut_leaves_the_loss_alone() -> None:
    whole, short = mean_losses(padded(5, 9, 7))
    assert float(short) == pytest.approx(float(whole), rel=1e-6)
    examples = padded(5, 9, 7)
    model, device = random_model("llama"), torch.device("cpu")
    total = mean_loss(model, examples, device, at_once=2)
    assert total == pytest.approx(float(whole), rel=1e-6)


def test_windows_of_plain_text_are_not_cut_nor_rows_without_a_label_left_empty() -> None:
    text = Examples.of(padded(48, 48).tokens)
    tokens, labels = trim(text.tokens, text.labels)
    assert torch.equal(tokens, text.tokens)
    assert torch.equal(labels, text.labels)
    nothing = torch.full((2, 48), UNLABELLED)
    assert trim(text.tokens, nothing)[0].shape == (2, 2)


def test_grouped_rows_are_all_rows_by_stretches_from_the_longest_on() -> None:
    """64 rows and 2 windows a step: a quarter of the 32 steps, 16 rows, are sorted together."""
    lengths = torch.randperm(64, generator=torch.Generator().manual_seed(2)).tolist()
    grouped = Order(64, seed=1, grouping=Grouping(lengths, windows=2)).at(range(128))
    plain = Order(64, seed=1).at(range(128))
    for start in (0, 64):
        rows, before = grouped[start : start + 64], plain[start : start + 64]
        assert sorted(rows) == list(range(64))
        assert lengths[rows[0]] == 63
        for first in range(0, 64, 16):
            inner = slice(first + 1, first + 16)  # the longest row has changed places
            assert [lengths[row] for row in rows[inner]] == sorted(
                (lengths[row] for row in rows[inner]), reverse=True
            )
            assert len({*rows[first : first + 16]} - {*before[first : first + 16]}) <= 1


def test_grouping_pads_less_and_a_small_set_is_one_stretch() -> None:
    lengths = [3, 40, 4, 41, 5, 42]
    assert Grouping(lengths, windows=2).stretch == 2
    order = Grouping(lengths * 4, windows=2).sort(range(24))
    pairs = [order[i : i + 2] for i in range(0, 24, 2)]
    padded_length = sum(2 * max(lengths[row % 6] for row in pair) for pair in pairs)
    plain = sum(2 * max(lengths[row % 6], lengths[(row + 1) % 6]) for row in range(0, 24, 2))
    assert padded_length < 0.7 * plain


def test_a_rows_length_ends_with_its_last_label() -> None:
    examples = padded(5, 9, 48)
    examples.labels[0, :2] = UNLABELLED  # a prompt
    examples.labels[1] = UNLABELLED
    assert labelled_lengths(examples.labels) == [5, 0, 48]

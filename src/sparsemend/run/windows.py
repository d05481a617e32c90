"""The token windows of one run, all read before the model is loaded: bad data costs seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsemend.data.base import DataSource, Examples


@dataclass(frozen=True)
class Windows:
    """Token windows (N, T) of one run; empty where nothing will read them."""

    test: Tensor
    calibration: Tensor
    train: Examples
    validation: Examples
    task: Examples | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The windows that something will read, besides those of test and task."""

    calibration: bool
    train: bool
    validation: bool


def read_windows(
    data: DataSource, tokenizer: PreTrainedTokenizerBase | None, wanted: Wanted, *, seed: int
) -> Windows:
    """Read the windows of test, of the task and of every wanted kind."""
    none = torch.empty(0, data.seqlen, dtype=torch.int64)
    return Windows(
        train=data.train(tokenizer) if wanted.train else Examples.of(none),
        validation=data.validation(tokenizer) if wanted.validation else Examples.of(none),
        task=data.task(tokenizer),
        test=data.test(tokenizer),
        # last: a shard of C4 takes a minute to read
        calibration=data.calibration(tokenizer, seed=seed) if wanted.calibration else none,
    )


def first_tested(windows: Windows, count: int | None, examples: int | None) -> Windows:
    """The same with the first `count` windows of test and `examples` of the task; None: all."""
    task = None if windows.task is None else windows.task.first(examples)
    return replace(windows, test=windows.test[:count], task=task)


def first_window(*kinds: Tensor) -> Tensor:
    """The first window (1, T) of the first kind (N, T) that has one; raises ValueError on none."""
    for windows in kinds:
        if len(windows):
            return windows[:1]
    raise ValueError("there is no window of tokens to check the model on; give some")


def check_vocabulary(tokens: Tensor, size: int) -> None:
    """Raise ValueError where a token id lies outside a vocabulary of `size`."""
    if not tokens.numel():
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"token ids reach from {low} to {high}, outside the vocabulary [0, {size}); "
            "tokenise with this model's tokenizer"
        )

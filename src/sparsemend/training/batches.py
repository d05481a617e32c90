"""The examples that a training step reads, and its loss on them.

Micro-batch k of a run is a function of (seed, k) alone, whatever was interrupted in between; with
several processes each takes its share of it, so the global batch does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset

from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import UNLABELLED, Examples


class SteppedBatches(Sampler[list[int]]):
    """Batches of row indices, each epoch a fresh permutation, starting at the micro-batch `start`.

    A global micro-batch holds batch_size * world rows, of which process `rank` reads every
    world-th; `batches` is the number of micro-batches of a whole run.
    """

    def __init__(
        self,
        *,
        rows: int,
        batch_size: int,
        batches: int,
        seed: int,
        start: Callable[[], int],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rows, self.batch_size, self.batches, self.seed = rows, batch_size, batches, seed
        self.start, self.rank, self.world = start, rank, world
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size * self.world
        for batch in range(self.start(), self.batches):
            first = batch * size + self.rank
            yield [self._row(first + i * self.world) for i in range(self.batch_size)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if self._epoch != epoch:
            self._order = permutation(self.rows, seed=self.seed, epoch=epoch)
            self._epoch = epoch
        return self._order[offset]


def permutation(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The order in which epoch `epoch` reads `rows` rows."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


def next_token_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled next-token positions of `tokens` (B, T), in fp32.

    labels (B, T): the token of each position, or UNLABELLED where predicting it does not count.
    """
    return token_loss(model(input_ids=tokens, use_cache=False).logits, labels)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """`next_token_loss` from logits (B, T, V), whose last position predicts nothing."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=UNLABELLED
    )


def mean_loss(model: nn.Module, examples: Examples, device: torch.device, batch_size: int) -> float:
    """The mean loss over all labelled tokens of `examples`; NaN if there are none."""
    home = next(model.parameters()).device
    model.to(device)
    total, count = 0.0, 0
    # moving the model inside inference mode would leave parameters that cannot be written to later
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            part = slice(start, start + batch_size)
            tokens, labels = examples.tokens[part].to(device), examples.labels[part].to(device)
            if number := count_labels(labels):
                total += float(next_token_loss(model, tokens, labels)) * number
                count += number
    model.to(home)
    return total / count if count else math.nan


def count_labels(labels: Tensor) -> int:
    """The number of next-token positions of labels (B, T) that count."""
    return int((labels[:, 1:] != UNLABELLED).sum())


def loader(examples: Examples, batches: Sampler[list[int]] | list[list[int]]) -> DataLoader[Any]:
    """Batches of (tokens, labels) by lists of row indices."""
    data = TensorDataset(examples.tokens, examples.labels)
    return DataLoader(data, batch_sampler=batches)

"""The examples that a training step reads, and the mean loss of many.

The windows of step k are a function of (seed, k) alone, whatever was interrupted in between.  They
are shared out over processes and micro-batches, whose numbers change neither which windows a step
reads nor what it minimises: the mean over all labelled positions of the step.  A batch is as long
as its longest example, as in the reference codes, whatever the window of data.seqlen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from sparsemend.config.seeds import mix_seed
from sparsemend.data.base import UNLABELLED, Examples, trim
from sparsemend.terminal import with_lines
from sparsemend.training.logits import next_token_loss
from sparsemend.training.shares import check_shares


@dataclass(frozen=True, kw_only=True)
class StepSplit:
    """The share of process `rank` of `world` in a step's `windows`, and its micro-batches.

    micro_batch: windows at once, None for the whole share; the last micro-batch may be smaller.
    """

    windows: int
    micro_batch: int | None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        check_shares(self.windows, self.world)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"hardware.micro_batch {self.micro_batch} is below 1")

    @property
    def share(self) -> int:
        return self.windows // self.world

    @property
    def at_once(self) -> int:
        """The windows of a micro-batch."""
        return min(self.micro_batch or self.share, self.share)

    @property
    def count(self) -> int:
        """The micro-batches of a step."""
        return -(-self.share // self.at_once)

    def whole(self, step: int) -> range:
        """The positions that all processes together read in `step` (0-based)."""
        return range(step * self.windows, (step + 1) * self.windows)

    def part(self, step: int, number: int) -> range:
        """The positions of this process's micro-batch `number`; processes read them in turn."""
        mine = self.whole(step)[self.rank :: self.world]
        return mine[number * self.at_once : (number + 1) * self.at_once]


@dataclass(frozen=True)
class Grouping:
    """Rows of like length are read together: their lengths, and the windows of a step."""

    lengths: Sequence[int]
    windows: int

    @property
    def stretch(self) -> int:
        """The rows that are sorted among themselves: of 50 steps, of a quarter of a small set."""
        steps = min(len(self.lengths) // (self.windows * 4), 50)
        return self.windows * max(1, steps)

    def sort(self, order: Sequence[int]) -> list[int]:
        """`order` by stretches, each from its longest row to its shortest.

        The longest row of all comes first, as in transformers' group_by_length: what does not fit
        into memory is seen at once.
        """
        parts = [
            sorted(order[start : start + self.stretch], key=lambda row: -self.lengths[row])
            for start in range(0, len(order), self.stretch)
        ]
        longest = max(range(len(parts)), key=lambda part: self.lengths[parts[part][0]])
        parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
        return [row for part in parts for row in part]


class Order:
    """The row read at each position of a run: every epoch a fresh permutation of all rows.

    grouping: by which the rows of an epoch are then sorted, if they are.
    """

    def __init__(self, rows: int, *, seed: int, grouping: Grouping | None = None) -> None:
        self.rows, self.seed, self.grouping = rows, seed, grouping
        self._epoch = -1
        self._order: list[int] = []

    def at(self, positions: Iterable[int]) -> list[int]:
        """The rows at these positions."""
        return [self._row(position) for position in positions]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if self._epoch != epoch:
            order = permutation(self.rows, seed=self.seed, epoch=epoch)
            self._order = self.grouping.sort(order) if self.grouping else order
            self._epoch = epoch
        return self._order[offset]


class SteppedBatches(Sampler[list[int]]):
    """The rows of every micro-batch of this process, from step `start` on up to step `steps`."""

    def __init__(
        self, order: Order, split: StepSplit, *, steps: int, start: Callable[[], int]
    ) -> None:
        self.order, self.split, self.steps, self.start = order, split, steps, start

    def __len__(self) -> int:
        return self.steps * self.split.count

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start(), self.steps):
            for number in range(self.split.count):
                yield self.order.at(self.split.part(step, number))


def permutation(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The order in which epoch `epoch` reads `rows` rows."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


def mean_loss(model: nn.Module, examples: Examples, device: torch.device, at_once: int) -> float:
    """The mean loss over all labelled tokens of `examples`; NaN if there are none.

    at_once: windows per forward.
    """
    home = next(model.parameters()).device
    model.to(device)
    total, count = 0.0, 0
    # moving the model inside inference mode would leave parameters that cannot be written to later
    with torch.inference_mode():
        starts = range(0, len(examples), at_once)
        for start in with_lines(starts, "validation batch", tokens=examples.tokens.numel()):
            part = slice(start, start + at_once)
            tokens, labels = trim(examples.tokens[part], examples.labels[part])
            if number := count_labels(labels):
                loss = next_token_loss(model, tokens.to(device), labels.to(device))
                total += float(loss) * number
                count += number
    model.to(home)
    return total / count if count else math.nan


def count_labels(labels: Tensor) -> int:
    """The number of next-token positions of labels (B, T) that count."""
    return int((labels[:, 1:] != UNLABELLED).count_nonzero())


def loader(
    examples: Examples, batches: Sampler[list[int]] | list[list[int]], *, whole: bool = False
) -> DataLoader[Any]:
    """Batches of (tokens, labels) by lists of row indices, each trimmed to its longest example.

    whole: every batch has the length of a window (a compiled model would be compiled anew).
    """
    data = TensorDataset(examples.tokens, examples.labels)
    collate = stack_rows if whole else stack_and_trim
    return DataLoader(data, batch_sampler=batches, collate_fn=collate)


def stack_rows(rows: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    tokens, labels = zip(*rows, strict=True)
    return [torch.stack(tokens), torch.stack(labels)]


def stack_and_trim(rows: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    tokens, labels = stack_rows(rows)
    return list(trim(tokens, labels))

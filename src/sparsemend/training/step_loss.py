"""The loss of an optimizer step, added up over its micro-batches and processes.

    loss = sum_i n_i l_i / sum_i n_i,   l_i: the mean over micro-batch i's n_i labelled positions

Lightning averages gradients over the M micro-batches of a step, and DistributedDataParallel over P
processes, as if all had as many labels.  So what micro-batch i returns is l_i M P n_i / sum_i n_i,
whose average has the gradient of the loss above; with equal n_i the factor is exactly 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from sparsemend.blocks.precision import sums_dtype
from sparsemend.training.objective import Loss


class StepLoss:
    """Sums over the micro-batches of one step; `labels`: labelled positions of the whole step."""

    def __init__(self, labels: int) -> None:
        self.labels = labels
        self._sum: Tensor | None = None  # of this process's micro-batches, fp64
        self._parts: dict[str, Tensor] = {}
        self._count = 0  # labelled positions of this process so far

    def add(self, loss: Loss, count: int, *, shares: int) -> Tensor:
        """Add a micro-batch of `count` labelled positions; return what backward starts from.

        shares: micro-batches times processes, over which gradients will be averaged.
        """
        if not count:  # a mean over nothing: no loss, and a gradient of zero
            return loss.total.nan_to_num() * 0
        wide = sums_dtype(loss.total.device)
        total = loss.total.detach().to(wide) * count
        self._sum = total if self._sum is None else self._sum + total
        for name, part in loss.parts.items():
            self._parts[name] = self._parts.get(name, 0) + part.detach().to(wide) * count
        self._count += count
        return loss.total * (count * shares / self.labels)

    def mean(self, device: torch.device, *, world: int) -> Tensor:
        """The loss of the step, the same on every process; fp32."""
        zero = torch.zeros((), dtype=sums_dtype(device), device=device)
        total = zero if self._sum is None else self._sum
        if world > 1:
            distributed.all_reduce(total)
        return (total / self.labels).float()

    def part_means(self) -> dict[str, Tensor]:
        """The parts of the loss by name, means over this process's own labelled positions."""
        return {name: (part / self._count).float() for name, part in self._parts.items()}

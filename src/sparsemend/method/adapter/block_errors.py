"""How far every block's output is from the dense model's, both walked side by side.

    e_i = (1/d) sum_k [sum over sequences and tokens of (D_k - y_k)^2] / |D_k|^2

D is the dense output of block i, y that of the pruned model on its own path, so errors accumulate
with depth (LoSA, Huang et al. 2025, arXiv 2502.14816).  The dense outputs are streamed, where the
released code stores those of every block, and errors are fp32, where it takes bf16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.walk import Calibration, Visit
from sparsemend.prune import prune_block
from sparsemend.pruner.base import Pruner
from sparsemend.sparse.pattern import Pattern


@dataclass(frozen=True)
class ModelPair:
    """A model, its dense counterpart, and the calibration on which both are walked.

    The dense model may live on the host while the other is on the calibration's device.
    """

    model: nn.Module
    dense: nn.Module
    calibration: Calibration

    def walk(self) -> Iterator[tuple[Visit, Visit]]:
        """(dense, model) visits of every block."""
        away = next(self.dense.parameters()).device != self.calibration.device
        of_dense = replace(self.calibration, offload=away)
        return zip(of_dense.walk(self.dense), self.calibration.walk(self.model), strict=True)


def output_errors(pair: ModelPair) -> list[float]:
    """e_i of every block."""
    return list(_errors(pair.walk()))


def prune_and_compare(
    pair: ModelPair,
    pruner: Pruner,
    allocation: Mapping[str, float],
    pattern: Pattern,
    *,
    true_sequential: bool = False,
) -> list[float]:
    """Prune the model block by block, in place, and return e_i of every pruned block."""

    def pruning() -> Iterator[tuple[Visit, Visit]]:
        for dense, visit in pair.walk():
            prune_block(visit, pruner, allocation, pattern, true_sequential=true_sequential)
            yield dense, visit

    return list(_errors(pruning()))


def _errors(visits: Iterator[tuple[Visit, Visit]]) -> Iterator[float]:
    # a block's outputs are the next one's inputs, so only the last block's cost a forward
    for dense, visit in visits:
        if visit.index:
            yield relative_error(dense.inputs, visit.inputs)
        if visit.index + 1 == visit.count:
            yield relative_error(dense.outputs(), visit.outputs())


def relative_error(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> float:
    """Mean over channels of the relative squared error of batches (B, T, d)."""
    return mean_relative(*channel_sums(dense, pruned))


def mean_relative(squared: Tensor, energy: Tensor) -> float:
    """`relative_error` from sums per channel (d,).

    Channels in which all dense values are 0 are left out; the error is 0 if no channel is left.
    """
    alive = energy > 0
    return float((squared[alive] / energy[alive]).mean()) if alive.any() else 0.0


@torch.no_grad()
def channel_sums(dense: Sequence[Tensor], other: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(squared error, energy of `dense`) per channel, (d,) each, over batches (B, T, d).

    Sums are fp32 within a sequence and fp64 over sequences; `other` may yield batches one by one,
    on the device that works, where those of `dense` may wait elsewhere.
    """
    squared = energy = torch.zeros(())
    for number, (waiting, output) in enumerate(zip(dense, other, strict=True)):
        target, device = waiting.to(output.device), output.device
        if number == 0:
            squared = torch.zeros(target.shape[-1], dtype=sums_dtype(device), device=device)
            energy = torch.zeros_like(squared)
        for wide, near in zip(target.float(), output.float(), strict=True):
            # Gemma-3n has several states per token
            squared += (wide - near).square().flatten(0, -2).sum(dim=0)
            energy += wide.square().flatten(0, -2).sum(dim=0)
    return squared, energy

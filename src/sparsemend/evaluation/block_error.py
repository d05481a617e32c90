"""The distance of each block's output from the dense model's, and its growth with depth.

    e_i = ||X_i - X~_i||_F / ||X_i||_F,   X_i, X~_i the outputs of block i, dense and as it is now

The "error explosion" of ATP (Huang et al. 2025, arXiv 2502.14770): an error made early is carried
through every later block.  Growth is the factor per block of the least-squares line through
log e_i; above 1 the error grows.  Sums are in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.precision import sums_dtype
from sparsemend.blocks.walk import Calibration, Visit
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.sparse.linear import sparse_linears

GROUP = "block_error"


@dataclass(kw_only=True)
class BlockError(Evaluation):
    """`block_error/0`, `/1`, ... per block, `/mean`, `/last` and `/growth`.

    A model without a sparse linear is the dense model itself and yields nothing.  The dense model
    is loaded once more and visited block by block, so that only one of its blocks is on the device.
    """

    repeatable: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    windows: int

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, inputs: EvaluationInput) -> dict[str, float]:
        if next(sparse_linears(model), None) is None:
            return {}
        windows = Calibration(
            (inputs.test[: self.windows],),
            device=inputs.device,
            together=inputs.batch_size,
            states=inputs.states,
        )
        of_dense = replace(windows, offload=True)
        pairs = zip(of_dense.walk(inputs.load_dense()), windows.walk(model), strict=True)
        errors = []
        for dense, now in pairs:
            if dense.index:  # the inputs of a block are the outputs of the one before it
                errors.append(relative_error(dense.inputs, now.inputs))
            if dense.index == dense.count - 1:
                errors.append(_of_outputs(dense, now))
        return {f"{GROUP}/{i}": error for i, error in enumerate(errors)} | {
            f"{GROUP}/mean": sum(errors) / len(errors),
            f"{GROUP}/last": errors[-1],
            f"{GROUP}/growth": growth(errors),
        }


def _of_outputs(dense: Visit, now: Visit) -> float:
    """That of the outputs, of which those of one batch are there at a time."""
    batches = range(len(dense.inputs))
    return relative_error(map(dense.output, batches), map(now.output, batches))


def relative_error(dense: Iterable[Tensor], now: Iterable[Tensor]) -> float:
    """||dense - now||_F / ||dense||_F over all batches (B, T, D)."""
    apart = size = 0.0
    for x, y in zip(dense, now, strict=True):
        wide = sums_dtype(x.device)
        # states of one walk may wait where those of the other found no room
        apart += float((x.to(wide) - y.to(x.device, wide)).square().sum())
        size += float(x.to(wide).square().sum())
    return math.sqrt(apart / size)


def growth(errors: Sequence[float]) -> float:
    """The factor per block of the least-squares line through log errors; NaN where one is 0."""
    if len(errors) < 2 or min(errors) <= 0:
        return math.nan
    logs = [math.log(error) for error in errors]
    middle = (len(errors) - 1) / 2
    mean = sum(logs) / len(logs)
    covariance = sum((i - middle) * (value - mean) for i, value in enumerate(logs))
    return math.exp(covariance / sum((i - middle) ** 2 for i in range(len(errors))))

"""Where sparse deltas start: at random, or where the first windows' gradient is largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.method.base import Workbench
from sparsemend.sparse.drop_and_grow import highest
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.weight_gradients import Backward, take_gradients

Places = Callable[[SparseLinear], Tensor]  # where the deltas of a linear may be, bool (O, I)


def kept_places(linear: SparseLinear) -> Tensor:
    """The support."""
    return linear.keep


def all_places(linear: SparseLinear) -> Tensor:
    """Everywhere."""
    return torch.ones(linear.weight.shape, dtype=torch.bool, device=linear.weight.device)


def random_positions(
    model: nn.Module, places: Places, counts: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """Linear name -> `counts` distinct flat positions out of its places.

    Drawn on the CPU in module order, so that every device starts alike.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, linear in sparse_linears(model):
        allowed = places(linear).reshape(-1).nonzero().view(-1).cpu()
        drawn = torch.randperm(len(allowed), generator=generator)[: counts[name]]
        chosen[name] = allowed[drawn].to(_smallest(linear))
    return chosen


def gradient_positions(
    model: PreTrainedModel,
    bench: Workbench,
    places: Places,
    counts: Mapping[str, int],
    *,
    windows: int,
) -> dict[str, Tensor]:
    """Linear name -> flat positions of largest |gradient| out of its places.

    The gradient is that of the first training `windows`.
    """
    linears, examples = dict(sparse_linears(model)), bench.train.first(windows)
    positions: dict[str, Tensor] = {}

    def take(name: str, gradient: Tensor) -> None:
        score = gradient.abs_().reshape(-1)
        score[~places(linears[name]).reshape(-1).to(score.device)] = -1
        positions[name] = highest(score, counts[name]).cpu().to(_smallest(linears[name]))

    how = Backward(
        micro_batch=bench.micro_batch,
        activation_checkpointing=bench.activation_checkpointing,
        mixed=False,
        for_init="init_scope=gradient",
    )
    home = next(model.parameters()).device
    nn.Module.to(model, bench.device)
    try:
        take_gradients(model, linears, examples, [range(len(examples))], how, take)
    finally:
        nn.Module.to(model, home)
    for name in linears.keys() - positions.keys():  # an expert that no token chose: anywhere kept
        positions[name] = linears[name].keep.reshape(-1).nonzero().view(-1)[: counts[name]].cpu()
    return positions


def _smallest(linear: SparseLinear) -> torch.dtype:
    """The dtype of a delta's positions."""
    return torch.int32 if linear.weight.numel() < 2**31 else torch.int64

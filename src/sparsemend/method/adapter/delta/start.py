"""Where sparse deltas start: at random, or where the first windows' gradient is largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.method.adapter.low_rank import wider
from sparsemend.method.base import Workbench
from sparsemend.sparse.drop_and_grow import highest
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.training.logits import next_token_loss


def random_positions(
    places: Mapping[str, Tensor], counts: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """Linear name -> `counts` distinct flat positions out of its `places`, bool (O, I).

    Drawn on the CPU in module order, so that every device starts alike.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, place in places.items():
        allowed = place.reshape(-1).nonzero().view(-1).cpu()
        drawn = torch.randperm(len(allowed), generator=generator)[: counts[name]]
        chosen[name] = allowed[drawn]
    return chosen


def gradient_positions(
    model: PreTrainedModel,
    bench: Workbench,
    places: Mapping[str, Tensor],
    counts: Mapping[str, int],
    *,
    windows: int,
) -> dict[str, Tensor]:
    """Linear name -> flat positions of largest |gradient| out of its `places`, bool (O, I).

    The gradient is that of the first training `windows`; one linear's exists at a time.
    """
    linears, device = dict(sparse_linears(model)), bench.device
    positions: dict[str, Tensor] = {}

    def note(name: str, linear: SparseLinear) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            score = weight.grad.to(wider(weight.dtype)).abs().reshape(-1)
            score[~places[name].reshape(-1)] = -1
            positions[name] = highest(score, counts[name]).cpu()
            weight.grad = None

        linear.weight.requires_grad_(True)
        return hook

    home = next(model.parameters()).device
    nn.Module.to(model.requires_grad_(False), device)
    hooks = [
        linear.weight.register_post_accumulate_grad_hook(note(name, linear))
        for name, linear in linears.items()
    ]
    examples = bench.train.first(windows)
    try:
        next_token_loss(model, examples.tokens.to(device), examples.labels.to(device)).backward()
    finally:
        for hook in hooks:
            hook.remove()
        nn.Module.to(model.requires_grad_(False), home)
    for name in linears.keys() - positions.keys():  # an expert that no token chose: anywhere kept
        positions[name] = linears[name].keep.reshape(-1).nonzero().view(-1)[: counts[name]].cpu()
    return positions

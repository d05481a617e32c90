"""Tell linears that multiply by their weight from those that only inherit from nn.Linear.

Some subclasses round their inputs or unpack their weights first (BitNet, FP8), and pruning by what
they hold would be wrong; Falcon's writes the same product in another way.  So one with a
forward of its own is tried, once, on a corner of its weight.
"""

from __future__ import annotations

import copy
from typing import TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

CORNER = 16  # rows and columns
TOLERANCE = 1e-5  # of fp32 products of 16 terms, which agree to 1e-6; 8-bit inputs are 1e-3 off

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class LinearLike(nn.Linear):
    """A linear of this package: its own forward multiplies by an effective weight (O, I)."""


def multiplies(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an nn.Linear whose output is x W^T + b, or one of this package."""
    if not isinstance(module, nn.Linear):
        return False
    if isinstance(module, LinearLike) or type(module).forward is nn.Linear.forward:
        return True
    if module not in _tried:
        _tried[module] = _behaves(module)
    return _tried[module]


@torch.no_grad()
def _behaves(module: nn.Linear) -> bool:
    """Whether the forward of a subclass is x W^T + b for a corner of its weight, in fp32."""
    if not module.weight.is_floating_point() or module.weight.ndim != 2:
        return False
    corner, generator = copy.copy(module), torch.Generator().manual_seed(0)
    parameters = {"weight": module.weight[:CORNER, :CORNER]}
    if module.bias is not None:
        parameters["bias"] = module.bias[:CORNER]
    corner._parameters = {"bias": None} | {
        name: nn.Parameter(_numbers(value, generator), requires_grad=False)
        for name, value in parameters.items()
    }
    rows = torch.randn(2, corner.weight.shape[1], generator=generator).to(corner.weight.device)
    try:
        output = type(module).forward(corner, rows)
    except Exception:  # it reads what a plain linear does not have
        return False
    expected = F.linear(rows, corner.weight, corner.bias)
    if not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    return bool((output - expected).norm() <= TOLERANCE * expected.norm())


def _numbers(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The values in fp32, or random ones where they are in no memory."""
    return torch.randn(values.shape, generator=generator) if values.is_meta else values.float()

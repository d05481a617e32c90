"""Biases and norms as parameters that train, chosen by module type and kept in fp32 meanwhile.

In a model of lower precision each trains through an fp32 original that is rounded on use, since
an AdamW step is often smaller than the spacing of bf16.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsemend.method.adapter.low_rank import wider


class Rounded(nn.Module):
    """Parametrization: an fp32 original, used in the model's dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, original: Tensor) -> Tensor:
        return original.to(self.dtype)

    def right_inverse(self, value: Tensor) -> tuple[Tensor]:
        # as a tuple: torch does not let a single original differ in dtype
        return (value.to(wider(value.dtype)),)


def vectors(model: nn.Module, *, biases: bool, norms: bool) -> list[tuple[nn.Module, str]]:
    """(module, attribute) of every bias if `biases`, of every norm's parameters if `norms`.

    A norm is any module, linears aside, all of whose own parameters are vectors; its bias is a bias
    too (PERP's code).
    """
    places: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if biases and module.bias is not None:
                places.append((module, "bias"))
        elif not isinstance(module, parametrize.ParametrizationList):
            names = _own_parameters(module)
            norm = all(getattr(module, name).ndim == 1 for name in names)
            biased = biases and "bias" in names and module.bias.ndim == 1
            if norm and norms:
                places += [(module, name) for name in names]
            elif biased:
                places.append((module, "bias"))
    return places


def widen(chosen: Iterable[tuple[nn.Module, str]]) -> None:
    """Give each parameter narrower than fp32 an fp32 original; its value does not change."""
    for module, name in chosen:
        dtype = getattr(module, name).dtype
        if wider(dtype) != dtype:
            parametrize.register_parametrization(module, name, Rounded(dtype), unsafe=True)


def narrow(model: nn.Module) -> None:
    """Replace every fp32 original by its rounded value, frozen."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                # what requires no gradient would come back as a buffer
                original(module, name).requires_grad_(True)
                parametrize.remove_parametrizations(module, name)
                getattr(module, name).requires_grad_(False)


def original(module: nn.Module, name: str) -> nn.Parameter:
    """The tensor that trains: the parameter, or the fp32 original behind it."""
    if parametrize.is_parametrized(module, name):
        wide = module.parametrizations[name].original0  # type: ignore[index,union-attr]
        assert isinstance(wide, nn.Parameter)
        return wide
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _own_parameters(module: nn.Module) -> list[str]:
    """Names of the module's own parameters, seen through parametrizations."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    if parametrize.is_parametrized(module):
        names += list(module.parametrizations)  # type: ignore[arg-type]
    return names

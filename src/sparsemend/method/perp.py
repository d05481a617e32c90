"""PERP: retrain only biases and norms, and perhaps multipliers that keep every zero.

    adapter=none         the biases of linears and the parameters of norms, nothing else
    adapter=scale_lora   W_eff = W * (B A),  B A = 1 at the start

(Zimmer et al. 2023, arXiv 2312.15230.)  The released ScaleLoRA fills A and B with 1/sqrt(r): its r
components start equal, receive equal gradients and stay equal, so B A keeps rank 1 whatever r is.
`init=perturbed` adds noise, seeded, of relative size 1e-2.  Either way the start is exact because
the multiplier is formed as 1 + (B A - B0 A0).

Trained tensors are fp32: in a model of lower precision biases and norms train through an fp32
original that is rounded on use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from sparsemend.masks import SparseLinear
from sparsemend.method.base import TrainedRepair, Workbench, adapters, fold_adapters
from sparsemend.method.low_rank import attach_adapters, check_adapter, check_ranks, wider
from sparsemend.training_plan import check_choice

NOISE = 1e-2  # relative to 1/sqrt(r)


class ScaleLoraLinear(SparseLinear):
    """W * (1 + B A - B0 A0); scale_a (R, I) and scale_b (O, R) fp32, their start kept beside."""

    start_a: Tensor
    start_b: Tensor
    scale_a: nn.Parameter
    scale_b: nn.Parameter

    def __init__(
        self, base: SparseLinear, rank: int, noise: float, generator: torch.Generator
    ) -> None:
        super().__init__(base.weight, base.bias, base.keep)
        weight, size = base.weight, 1 / math.sqrt(rank)
        for letter, shape in (("a", (rank, base.in_features)), ("b", (base.out_features, rank))):
            start = torch.randn(shape, generator=generator).mul_(noise * size).add_(size)
            start = start.to(device=weight.device, dtype=wider(weight.dtype))
            self.register_buffer(f"start_{letter}", start, persistent=False)
            self.register_parameter(f"scale_{letter}", nn.Parameter(start.clone()))

    def effective_weight(self) -> Tensor:
        # bf16 is too coarse beside one: autocast would round B A before B0 A0 is taken off
        with torch.autocast(self.weight.device.type, enabled=False):
            multiplier = 1 + (self.scale_b @ self.scale_a - self.start_b @ self.start_a)
        return (self.weight * multiplier).to(self.weight.dtype)

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Restart the multipliers at one on a new base: a product cannot revive a zero."""
        super().set_effective_(weight, keep)
        self.start_a.copy_(self.scale_a)
        self.start_b.copy_(self.scale_b)


class Rounded(nn.Module):
    """Parametrization: an fp32 original, used in the model's dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, original: Tensor) -> Tensor:
        return original.to(self.dtype)

    def right_inverse(self, value: Tensor) -> tuple[Tensor]:
        # as a tuple: torch lets a single original not differ in dtype
        return (value.to(wider(value.dtype)),)


@dataclass(kw_only=True)
class Perp(TrainedRepair):
    """Trains biases, norm parameters and ScaleLoRA's factors, whichever are switched on."""

    biases: bool
    norms: bool
    adapter: str
    rank: int
    init: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, 1.0, 0.0)
        check_choice("adapter", self.adapter, ("none", "scale_lora"))
        check_choice("init", self.init, ("released", "perturbed"))
        if not (self.biases or self.norms or self.adapter != "none"):
            raise ValueError(
                "method=perp has nothing to train: set method.biases, method.norms or "
                "method.adapter=scale_lora"
            )

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        if self.adapter != "none":
            check_ranks(model, self.rank)
        elif not list(self._vectors(model)):
            raise ValueError(
                "method=perp finds no bias or norm to train in this model; set method.norms=true "
                "or method.adapter=scale_lora"
            )

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        if self.adapter == "scale_lora":
            generator = torch.Generator().manual_seed(bench.seed)
            noise = NOISE if self.init == "perturbed" else 0.0
            attach_adapters(
                model, lambda _, linear: ScaleLoraLinear(linear, self.rank, noise, generator)
            )
        for module, name in list(self._vectors(model)):
            dtype = getattr(module, name).dtype
            if wider(dtype) != dtype:
                parametrize.register_parametrization(module, name, Rounded(dtype), unsafe=True)

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        found = [_original(module, name) for module, name in self._vectors(model)]
        for _, adapter in adapters(model):
            if isinstance(adapter, ScaleLoraLinear):
                found += [adapter.scale_a, adapter.scale_b]
        return found

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    # what requires no gradient would come back as a buffer
                    _original(module, name).requires_grad_(True)
                    parametrize.remove_parametrizations(module, name)
                    getattr(module, name).requires_grad_(False)
        return fold_adapters(model)

    def _vectors(self, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """(module, attribute) of every bias of a linear and every parameter of a norm asked for.

        A norm is any other module that owns nothing but vectors.
        """
        for module in model.modules():
            if isinstance(module, nn.Linear):
                if self.biases and module.bias is not None:
                    yield module, "bias"
            elif self.norms and not isinstance(module, parametrize.ParametrizationList):
                names = _own_parameters(module)
                if all(getattr(module, name).ndim == 1 for name in names):
                    yield from ((module, name) for name in names)


def _own_parameters(module: nn.Module) -> list[str]:
    """Names of the module's own parameters, seen through parametrizations."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if parametrize.is_parametrized(module):
        own += list(module.parametrizations)  # type: ignore[arg-type]
    return own


def _original(module: nn.Module, name: str) -> nn.Parameter:
    """The tensor that trains: the parameter, or the fp32 original behind it."""
    if parametrize.is_parametrized(module, name):
        original = module.parametrizations[name].original0  # type: ignore[index,union-attr]
        assert isinstance(original, nn.Parameter)
        return original
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter

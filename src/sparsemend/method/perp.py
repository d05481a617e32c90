"""PERP: retrain a small part of the model: biases, norms, and low-rank updates.

`trained` lists the parts; all but one of the last two is the set that the released code trains:

    biases      of linears and norms         norms       every parameter of norms
    lm_head     LoRA on the output head, merged, since the head is not pruned
    mask_lora   W_eff = keep * (W + s B A)   scale_lora  W_eff = W * (B A),  B A = 1 at the start

(Zimmer et al. 2023, arXiv 2312.15230.)  The released ScaleLoRA fills A and B with 1/sqrt(r): its r
components start equal, receive equal gradients and stay equal, so B A keeps rank 1 whatever r is.
`init=perturbed` adds noise, seeded, of relative size 1e-2.  Either way the start is exact because
the multiplier is formed as 1 + (B A - B0 A0).

Trained tensors are fp32: in a model of lower precision biases and norms train through an fp32
original that is rounded on use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.method.adapter.fold import adapters, fold_adapters
from sparsemend.method.adapter.head import attach_head, fold_head, head_factors, plain_head
from sparsemend.method.adapter.low_rank import (
    attach_adapters,
    attach_started,
    check_adapter,
    check_ranks,
    factors,
    wider,
)
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear
from sparsemend.method.adapter.vectors import narrow, original, vectors, widen
from sparsemend.method.base import Workbench
from sparsemend.method.trained import TrainedRepair
from sparsemend.sparse.linear import SparseLinear
from sparsemend.training.plan import check_choice

PARTS = ("biases", "norms", "lm_head", "mask_lora", "scale_lora")
ADAPTERS = ("mask_lora", "scale_lora")  # of the pruned linears, one at most
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


@dataclass(kw_only=True)
class Perp(TrainedRepair):
    """Trains the parts of the model that `trained` lists, and folds what it attached."""

    trained: list[str]
    rank: int
    alpha: float
    init: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.rank, self.alpha, 0.0)
        for part in self.trained:
            check_choice("trained", part, PARTS)
        check_choice("init", self.init, ("released", "perturbed"))
        if not self.trained:
            raise ValueError(
                f"method.trained is empty; list what trains, of {', '.join(PARTS)}: "
                "method.trained=[biases,norms]"
            )
        if len(self._adapters) > 1:
            raise ValueError(
                "method.trained has mask_lora and scale_lora, but a linear takes one of them; "
                "leave one out"
            )

    @property
    def _adapters(self) -> list[str]:
        return [name for name in ADAPTERS if name in self.trained]

    def check_model(self, model: PreTrainedModel, supports: Mapping[str, Tensor] | None) -> None:
        if self._adapters:
            check_ranks(model, self.rank)
        if "lm_head" in self.trained:
            plain_head(model, self.rank)
        elif not (self._adapters or self._vectors(model)):
            raise ValueError(
                "method=perp finds no bias or norm to train in this model; set "
                "method.trained=[norms] or method.trained=[scale_lora]"
            )

    def attach(self, model: PreTrainedModel, bench: Workbench) -> None:
        scale = self.alpha / self.rank
        if "mask_lora" in self.trained:
            attach_started(
                model,
                lambda linear, start: MaskedLoraLinear(linear, start, scale),
                rank=self.rank,
                seed=bench.seed,
            )
        if "scale_lora" in self.trained:
            generator = torch.Generator().manual_seed(bench.seed)
            noise = NOISE if self.init == "perturbed" else 0.0
            attach_adapters(
                model, lambda _, linear: ScaleLoraLinear(linear, self.rank, noise, generator)
            )
        if "lm_head" in self.trained:
            attach_head(model, rank=self.rank, scale=scale, seed=bench.seed)
        widen(self._vectors(model))

    def trainable(self, model: PreTrainedModel) -> list[nn.Parameter]:
        parameters = [original(module, name) for module, name in self._vectors(model)]
        for _, adapter in adapters(model):
            if isinstance(adapter, ScaleLoraLinear):
                parameters += [adapter.scale_a, adapter.scale_b]
        return parameters + factors(model) + head_factors(model)

    def fold(self, model: PreTrainedModel) -> dict[str, Any]:
        narrow(model)
        fold_head(model)
        return fold_adapters(model)

    def _vectors(self, model: nn.Module) -> list[tuple[nn.Module, str]]:
        return vectors(model, biases="biases" in self.trained, norms="norms" in self.trained)

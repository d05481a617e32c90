"""The base of the low-rank adapters: two factors beside a frozen sparse weight, start and scale.

    update = s B A,   B (O, R),  A (R, I),   s = alpha / r  or  alpha / sqrt(r)

A starts Kaiming-uniform and B at zero (Hu et al. 2021, arXiv 2106.09685; bound 1/sqrt(I) as in
PEFT), so attaching changes nothing.  Factors are fp32 whatever the weight's dtype: an AdamW step
is often smaller than the spacing of bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsemend.blocks.find import called_linears
from sparsemend.blocks.names import saved_name
from sparsemend.method.adapter.fold import adapters
from sparsemend.sparse.linear import SparseLinear, sparse_linears

SCALE_RULES = ("alpha_over_r", "alpha_over_sqrt_r")


class LowRankLinear(SparseLinear):
    """Base of the adapters with factors: W frozen, lora_a (R, I) and lora_b (O, R)."""

    def __init__(self, base: SparseLinear, start: Tensor, scale: float) -> None:
        """Take over `base`; `start` (R, I) becomes A, B is zero."""
        super().__init__(base.weight, base.bias, base.keep)
        start = start.to(device=base.weight.device, dtype=wider(base.weight.dtype))
        # one layout whatever made it: products of transposed factors round differently
        self.lora_a = nn.Parameter(start.contiguous())
        self.lora_b = nn.Parameter(start.new_zeros(base.out_features, start.shape[0]))
        self.scale = scale

    @property
    def used(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.lora_a, self.lora_b

    def update(self) -> Tensor:
        """scale * B A, (O, I), not masked, in the factors' dtype under autocast too.

        The fold adds it in fp32; a product that autocast rounds to bf16 would be another function.
        """
        a, b = self.used
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.scale * (b @ a)

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Make `weight` effective on the support by moving the base under the adapter."""
        super().set_effective_(weight, keep)
        self.weight.copy_(self.wide_weight() - self.update())
        self.project_()

    def wide_weight(self) -> Tensor:
        """The frozen weight in fp32 (fp64 stays), so that a bf16 model rounds a sum once."""
        return self.weight.to(wider(self.weight.dtype))


def wider(dtype: torch.dtype) -> torch.dtype:
    """fp32, or the dtype itself where it is wider."""
    return torch.promote_types(dtype, torch.float32)


def scale_of(alpha: float, rank: int, rule: str) -> float:
    """The adapter's scale by one of SCALE_RULES (LoRA; rsLoRA, Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if rule == "alpha_over_sqrt_r" else rank)


def kaiming_start(rank: int, in_features: int, generator: torch.Generator) -> Tensor:
    """A's usual start (R, I): uniform in +-1/sqrt(I), that is kaiming_uniform with a = sqrt 5."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)


def attach_adapters(model: nn.Module, make: Callable[[str, SparseLinear], SparseLinear]) -> None:
    """Freeze every SparseLinear and replace it by `make(name, linear)`."""
    for name, linear in list(sparse_linears(model)):
        linear.requires_grad_(False)
        model.set_submodule(name, make(name, linear).train(model.training))


def attach_started(
    model: nn.Module, make: Callable[[SparseLinear, Tensor], SparseLinear], *, rank: int, seed: int
) -> None:
    """Replace every SparseLinear by `make(linear, start)`, with A's usual start (rank, I).

    Starts are drawn in module order from a generator of `seed`.
    """
    generator = torch.Generator().manual_seed(seed)

    def start(name: str, linear: SparseLinear) -> SparseLinear:
        return make(linear, kaiming_start(rank, linear.in_features, generator))

    attach_adapters(model, start)


def factors(model: nn.Module) -> list[nn.Parameter]:
    """A and B of every low-rank adapter, in module order."""
    low_rank = [m for _, m in adapters(model) if isinstance(m, LowRankLinear)]
    return [p for adapter in low_rank for p in (adapter.lora_a, adapter.lora_b)]


def check_adapter(rank: int, alpha: float, dropout: float) -> None:
    """Raise ValueError on settings that no adapter can have."""
    if rank < 1:
        raise ValueError(f"method.rank {rank} is below 1")
    if alpha <= 0:
        raise ValueError(f"method.alpha {alpha} is not above 0, so the adapter would do nothing")
    if not 0 <= dropout < 1:
        raise ValueError(f"method.dropout {dropout} is not in [0, 1)")


def check_ranks(model: nn.Module, rank: int, key: str = "rank") -> None:
    """Raise ValueError naming the first linear that has no `rank` independent directions."""
    for name, linear in called_linears(model).items():
        limit = min(linear.in_features, linear.out_features)
        if rank > limit:
            raise ValueError(
                f"method.{key}={rank} exceeds min(inputs, outputs) = {limit} of "
                f"{saved_name(model, name)}; "
                f"set method.{key}={limit} or lower"
            )

"""The only home of a mask: SparseLinear, whose support is packed in memory as it is on disk.

`keep` is True where a weight stays.  N:M keeps N of every M consecutive inputs.  At rest a
support costs one bit per weight, packed along the input axis, lowest bit first; the same bytes
go to `masks.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.blocks.names import saved_name
from sparsemend.blocks.plain import LinearLike
from sparsemend.blocks.residency import streams, visit_linears
from sparsemend.sparse.packing import pack, unpack


class SparseLinear(LinearLike):
    """A Linear whose weight lives on a support.

    Invariant after every public call: `effective_weight()[~keep] == 0`.  Adapters subclass it and
    override `effective_weight` and `set_effective_`.
    """

    packed_keep: Tensor
    weight: nn.Parameter
    holds_support: ClassVar[bool] = True  # False: dense in effect (plain LoRA), base on the support
    moving: tuple[str, ...] = ()  # untrained state, by name, that training this layer may change
    first_keep: ClassVar[str] = "packed_keep"  # name of the packed support that a fit starts from

    def __init__(self, weight: Tensor, bias: Tensor | None, keep: Tensor) -> None:
        """Take over the parameters `weight` (O, I) and `bias` (O,); zero off `keep` (O, I)."""
        if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter | None):
            raise TypeError("SparseLinear takes parameters over; plain tensors would be copied")
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.weight = weight
        self.register_parameter("bias", bias)
        self.register_buffer("packed_keep", pack(_check_keep(keep, weight).to(weight.device)))
        self.project_()

    @property
    def keep(self) -> Tensor:
        """The support, bool (O, I), unpacked afresh at each read."""
        return unpack(self.packed_keep, self.in_features)

    def effective_weight(self) -> Tensor:
        """The weight that forward multiplies by, (O, I)."""
        return self.weight

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Make `weight * keep` the effective weight.

        Besides SEFT's rounds this is the only writer of the support.
        """
        self.packed_keep.copy_(pack(_check_keep(keep, self.weight).to(self.packed_keep.device)))
        self.weight.copy_(weight)
        self.project_()

    @torch.no_grad()
    def project_(self) -> None:
        """Zero the weight off the support (also where it is NaN or infinite)."""
        zero_off_(self.weight, self.keep)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.effective_weight(), self.bias)


def _check_keep(keep: Tensor, weight: Tensor) -> Tensor:
    if keep.dtype != torch.bool or keep.shape != weight.shape:
        raise ValueError(
            f"keep must be bool of shape {tuple(weight.shape)}, "
            f"got {keep.dtype} of shape {tuple(keep.shape)}"
        )
    return keep


def zero_off_(weight: Tensor, keep: Tensor) -> Tensor:
    """Zero `weight` off `keep` in place, exactly and whatever is there (NaN, infinity, minus 0).

    Multiplies the bit patterns by 0 or 1 as integers: a ninth of the time of masked_fill_ on CPU.
    """
    weight.view(_BITS[weight.element_size()]).mul_(keep)
    return weight


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def sparse_linears(model: nn.Module) -> Iterator[tuple[str, SparseLinear]]:
    """(full name, module) of every SparseLinear, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            yield name, module


@torch.no_grad()
def check_supports(model: nn.Module) -> None:
    """Raise RuntimeError naming the first linear with a non-zero weight off its support.

    Looks at the effective weight, or at the base alone where an open adapter fills the zeros.
    """
    whole = visit_linears(model) if streams(model) else model.named_modules()
    for name, linear in whole:
        if not isinstance(linear, SparseLinear):
            continue
        weight = linear.effective_weight() if linear.holds_support else linear.weight
        escaped = int(weight.masked_fill(linear.keep, 0).count_nonzero())
        if escaped:
            raise RuntimeError(
                f"{saved_name(model, name)}: {escaped} weights off the support are not zero"
            )

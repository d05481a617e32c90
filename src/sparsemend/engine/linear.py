"""PackedLinear: a linear whose weight is stored packed; it stands where an nn.Linear stood.

Its buffers are what a file of packed weights has: `mask`, `values`, `scale` of int8 values, and a
float32 `bias`.  They keep their dtypes where a model is converted: float32 and bfloat16 inputs
are both multiplied by them, with sums in float32 and one rounding to the input's dtype (but for
many tokens by torch, see README.md).

A small product takes less than a call of an operator and its checks, so both are spared where
nothing traces: the buffers are checked once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsemend.engine import on_cuda  # noqa: F401  (the operator on CUDA)
from sparsemend.engine.library import Factor
from sparsemend.engine.operator import check_factor, forget_dense, product
from sparsemend.engine.packed import PackedWeight, unpack_weight


class PackedLinear(nn.Module):
    """x W^T + b for inference.  It has no parameters, and refuses inputs that need a gradient."""

    mask: Tensor
    values: Tensor
    scale: Tensor | None
    bias: Tensor | None
    offsets: Tensor

    def __init__(self, packed: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.register_buffer("mask", packed.mask)
        self.register_buffer("values", packed.values)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("offsets", packed.offsets, persistent=False)
        self._factor: Factor | None = None  # of these very buffers, checked

    @property
    def packed(self) -> PackedWeight:
        shape = (self.out_features, self.in_features)
        return PackedWeight(mask=self.mask, values=self.values, scale=self.scale, shape=shape)

    @property
    def weight(self) -> Tensor:
        """The dense weight (O, I), unpacked afresh at each read; int8 values times their scale."""
        return unpack_weight(self.packed)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            raise RuntimeError(
                "a packed linear has no backward pass; run it under torch.inference_mode(), and "
                "train the model before its weights are packed"
            )
        if input.shape[-1] != self.in_features:
            raise ValueError(
                f"an input of {input.shape[-1]} columns does not fit a packed linear of "
                f"{self.in_features}"
            )
        if _is_plain(input):
            return product(input, self._checked_factor())
        traced: Tensor = torch.ops.sparsemend.packed_linear(
            input, self.mask, self.values, self.offsets, self.scale, self.bias, self.out_features
        )
        return traced

    def _checked_factor(self) -> Factor:
        """The factor of the buffers, checked anew where one of them is another tensor."""
        factor, buffers = self._factor, self._buffers
        if (
            factor is None
            or factor.mask is not buffers["mask"]
            or factor.values is not buffers["values"]
            or factor.offsets is not buffers["offsets"]
            or factor.scale is not buffers["scale"]
            or factor.bias is not buffers["bias"]
        ):
            parts = (self.mask, self.values, self.offsets, self.scale, self.bias)
            factor = Factor(*parts, self.out_features)
            check_factor(factor, self.in_features, torch.device("cpu"))
            self._factor = factor
        return factor

    def extra_repr(self) -> str:
        density = self.packed.stored / (self.in_features * self.out_features)
        dtype = str(self.values.dtype).removeprefix("torch.")
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, values={dtype}, density={density:.3f}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers as `fn` moves them, but leave their dtypes: values are exact."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._factor = None  # it would hold the former buffers
        super()._apply(keep_dtype, recurse)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take over another weight of this shape, with however many values; damage is refused."""
        parts = {part: state_dict.get(f"{prefix}{part}") for part in ("mask", "values", "scale")}
        mask, values = parts["mask"], parts["values"]
        if mask is not None and values is not None:
            shape = (self.out_features, self.in_features)
            scale = None if parts["scale"] is None else parts["scale"].cpu()
            weight = PackedWeight(mask=mask.cpu(), values=values.cpu(), scale=scale, shape=shape)
            try:
                weight.check(prefix.rstrip(".") or "the packed weight")
            except ValueError as error:
                error_msgs.append(str(error))
                return
            forget_dense(self.mask)
            self._factor = None
            self.values = torch.empty_like(values, device=self.mask.device)
            self.offsets = weight.offsets.to(self.mask.device)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


def _is_plain(input: Tensor) -> bool:
    """Whether nobody traces or watches operators, so that a call of one may be saved."""
    return (
        type(input) is Tensor
        and input.is_cpu
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
    )

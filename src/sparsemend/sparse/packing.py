"""A support as one bit per weight, packed along the inputs, lowest bit first."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def pack(keep: Tensor) -> Tensor:
    """One bit per weight: bool (.., I) -> uint8 (.., ceil(I / 8)), lowest bit first."""
    if keep.device.type != "cpu":
        return packed_by_products(keep)
    return _packed_by_numpy(keep)


# an operator of torch's, so that a dry run on tensors without values knows its result too
@torch.library.custom_op("sparsemend::packbits", mutates_args=(), device_types="cpu")
def _packed_by_numpy(keep: Tensor) -> Tensor:
    """In a twentieth of the time of products."""
    return torch.from_numpy(np.packbits(keep.numpy(), axis=-1, bitorder="little"))


@_packed_by_numpy.register_fake
def _(keep: Tensor) -> Tensor:
    return keep.new_empty((*keep.shape[:-1], -(-keep.shape[-1] // 8)), dtype=torch.uint8)


def packed_by_products(keep: Tensor) -> Tensor:
    """The same bytes as `pack`, computed by products on any device."""
    padded = F.pad(keep.to(torch.uint8), (0, -keep.shape[-1] % 8))
    bits = padded.unflatten(-1, (-1, 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=keep.device)
    return (bits * weights).sum(dim=-1, dtype=torch.uint8)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """Inverse of `pack`: uint8 (.., ceil(I / 8)) -> bool (.., in_features)."""
    bits = _eight_bits(packed.device).index_select(0, packed.flatten().int())
    return bits.view(torch.bool).view(*packed.shape[:-1], -1)[..., :in_features]


@cache
def _eight_bits(device: torch.device) -> Tensor:
    """The eight bools of every byte, lowest bit first, as one int64 (256,): a twentieth of the
    time of masking and comparing."""
    with torch.inference_mode(False):  # the cache outlives an evaluation that asked first
        byte = torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(1)
        bit = 2 ** torch.arange(8, dtype=torch.uint8, device=device)
        return ((byte & bit) != 0).view(torch.int64).flatten()

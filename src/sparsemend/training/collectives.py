"""Messages between the ranks of a fit besides gradients: buffers, means, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn


@torch.no_grad()
def send_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0; DistributedDataParallel sends the parameters."""
    for buffer in module.buffers():
        flat = buffer.contiguous().view(-1).view(torch.uint8)  # gloo does not know every dtype
        distributed.broadcast(flat, src=0)
        buffer.copy_(flat.view(buffer.dtype).view(buffer.shape))


def average_over_ranks_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its mean over the ranks, the same bits on each, and return it.

    Without a process group it is returned unchanged.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
        tensor /= distributed.get_world_size()
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over the ranks: itself without a process group, else a copy."""
    together = distributed.is_available() and distributed.is_initialized()
    return average_over_ranks_(tensor.clone()) if together else tensor


def check_equal_over_ranks(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Raise RuntimeError, on every rank, naming the first tensor whose bits differ between ranks.

    device: the one that the process group communicates on.
    """
    digests = torch.tensor([digest(tensor) for tensor in tensors.values()], device=device)
    first = digests.clone()
    distributed.broadcast(first, src=0)
    differs = (digests != first).to(torch.int64)
    distributed.all_reduce(differs)
    for name, ranks in zip(tensors, differs.tolist(), strict=True):
        if ranks:
            raise RuntimeError(f"{name} differs between rank 0 and {ranks} other ranks")


def digest(tensor: Tensor) -> int:
    """Sixty-four bits of the SHA-256 of a tensor's bytes."""
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.sha256(raw.data).digest()[:8], "big", signed=True)

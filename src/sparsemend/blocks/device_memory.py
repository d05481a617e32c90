"""The memory that tensors may still take on a device."""

from __future__ import annotations

import torch

from sparsemend.blocks.room import available_bytes


def free_bytes(device: torch.device) -> int | None:
    """What the driver has free and what torch keeps for later tensors; None where not CUDA.

    The second part may be most of the card once a stage has run: by the driver alone it is taken.
    """
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def left_on(device: torch.device) -> int | None:
    """What a GPU has free, or where the device has no memory that tells, what the machine leaves.

    None where nothing tells.
    """
    return free_bytes(device) if device.type == "cuda" else available_bytes()

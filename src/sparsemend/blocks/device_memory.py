"""The memory that tensors may still take on a GPU."""

from __future__ import annotations

import torch


def free_bytes(device: torch.device) -> int | None:
    """What the driver has free and what torch keeps for later tensors; None where not CUDA.

    The second part may be most of the card once a stage has run: by the driver alone it is taken.
    """
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused

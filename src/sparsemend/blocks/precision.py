"""The dtype in which long sums are kept on a device."""

from __future__ import annotations

import torch

WITHOUT_FP64 = {"mps"}  # Apple's GPUs


def sums_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 where the device has nothing wider."""
    return torch.float32 if device.type in WITHOUT_FP64 else torch.float64

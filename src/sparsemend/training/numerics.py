"""How a process computes on its device: settings of torch that hold for all that it does.

With `deterministic` equal inputs give equal bits on a GPU too: attention's backward pass adds its
parts in a fixed order, scattered sums likewise, and cuBLAS keeps to one workspace.  An operator
that CUDA has in no such form then raises, and the run ends (`lacks_determinism`).
"""

from __future__ import annotations

import os

import torch

# read as the first product creates cuBLAS's handle; the larger of the two that NVIDIA documents
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
FLASH_ATTENTION = ("FLASH_ATTENTION_DETERMINISTIC", "1")  # read by transformers for that package


def set_numerics(*, gpu: bool, deterministic: bool) -> None:
    """Choose how this process computes, before it has computed anything on a GPU."""
    if gpu:
        # the papers' scripts prune in full fp32
        torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic:
            for name, value in (CUBLAS, FLASH_ATTENTION):
                os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(deterministic)
    # nothing here reads memory that it has not written, so filling it would cost and give nothing
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

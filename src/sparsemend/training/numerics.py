"""How a process computes on its device: settings of torch that hold for all that it does.

With `deterministic` equal inputs give equal bits on a GPU too: attention's backward pass adds its
parts in a fixed order, scattered sums likewise, and cuBLAS keeps to one workspace.  An operator
that CUDA has in no such form then raises, and the run ends (`lacks_determinism`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision

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


def with_half(accelerator: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` of a Trainer, with which 16-mixed is fp16 and scales its loss on a CPU too.

    Lightning would compute in bf16 there.
    """
    if accelerator != "cpu" or settings.get("precision") != "16-mixed":
        return settings
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    others = {name: value for name, value in settings.items() if name != "precision"}
    return {**others, "plugins": [*settings.get("plugins", ()), half]}


@contextmanager
def numerics_kept() -> Iterator[None]:
    """Whatever is computed inside, afterwards torch computes as it did before."""
    products = torch.get_float32_matmul_precision()  # which tells of TF32 too
    mode = torch.get_deterministic_debug_mode()  # off, to warn, to raise
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]

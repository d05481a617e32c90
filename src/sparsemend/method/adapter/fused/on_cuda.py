"""keep * (base W + B A) on CUDA by a Triton kernel, where Triton is installed.

Not measured: no card was at hand.  Under TRITON_INTERPRET=1 the kernel runs on a CPU, which is how
its test runs where Triton can be imported.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

from sparsemend.engine.build import TORCH, asked_form
from sparsemend.method.adapter.fused.plain import form_in_strips

log = logging.getLogger(__name__)

ROWS, COLUMNS = 64, 64  # of a tile; a tile's sums are in registers
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_RANK = 16  # of a product of Triton's
MOST_RANK = 32  # at a time: 32 KiB of shared memory, and every card has 48


def fits_cuda(weight: Tensor, a: Tensor, b: Tensor, packed_keep: Tensor | None) -> bool:
    """Whether the kernel takes these and gives here what torch gives."""
    tensors = [t for t in (weight, a, b, packed_keep) if t is not None]
    return (
        asked_form() != TORCH
        and all(t.is_cuda and t.is_contiguous() for t in tensors)
        and a.dtype == b.dtype == torch.float32
        and weight.dtype in DTYPES
        and min(*weight.shape, *a.shape) > 0
        and _works(weight.device)
    )


def form_on_cuda(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    packed_keep: Tensor | None,
    *,
    base: float,
    dtype: torch.dtype,
) -> Tensor:
    """What `form_in_strips` gives, but for the order of sums over the rank."""
    import triton

    from sparsemend.method.adapter.fused.triton_kernel import fuse

    (rows, columns), rank = weight.shape, a.shape[0]
    step = min(MOST_RANK, max(LEAST_RANK, triton.next_power_of_2(rank)))
    output = torch.empty_like(weight, dtype=dtype)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    with torch.cuda.device_of(weight):  # which need not be the current one
        fuse[grid](
            *(weight, weight if packed_keep is None else packed_keep, a, b, output),
            *(rows, columns, rank, -(-columns // 8)),
            PACKED=packed_keep is not None,
            BASE=bool(base),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            RANK=step,
            enable_fp_fusion=True,
        )
    return output


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton is there and a first small matrix comes out right; a warning says if not."""
    if importlib.util.find_spec("triton") is None:
        return False
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (
        torch.randn(shape, generator=generator).to(device) for shape in ((70, 90), (3, 90), (70, 3))
    )
    try:
        ours = form_on_cuda(weight, a, b, None, base=1.0, dtype=torch.float32)
    except Exception as error:  # whatever a compiler on a user's machine may say
        log.warning("torch forms masked weights, Triton cannot: %s", str(error).splitlines()[0])
        return False
    plain = form_in_strips(weight, a, b, None, base=1.0, dtype=torch.float32)
    if torch.allclose(ours, plain, rtol=1e-4, atol=1e-4):  # sums of three terms, TF32 apart
        return True
    log.warning("torch forms masked weights, since Triton's come out wrong here")
    return False

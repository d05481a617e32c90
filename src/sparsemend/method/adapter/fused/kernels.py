"""The compiled kernels for a CPU, used where they give the bits that torch gives.

A kernel adds up B A in the order of the rank by fused multiply-adds, as torch's product does with
MKL; whether it does so here is tried once per rank.  Where it does not, or without a compiler or
AVX2, torch forms the weight, in about twice the time.  $SPARSEMEND_ENGINE=torch asks for that, and
avx2 for that form.
"""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # before the library, whose OpenMP is then torch's
from torch import Tensor

from sparsemend.engine.build import NoKernels, open_library
from sparsemend.engine.choice import KEY, TORCH
from sparsemend.engine.library import threads
from sparsemend.method.adapter.fused.plain import STRIP_ROWS, form_in_strips
from sparsemend.sparse.packing import pack

log = logging.getLogger(__name__)

MAIN = Path(__file__).parent / "source" / "fused.cpp"
FORMS = ("none", "avx2", "avx512")  # as in fused.cpp, worst first
LEAST_COLUMNS = 16  # MKL adds up fewer in another order on Zen 4; elsewhere a single column
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in job.h


class FusedJob(ctypes.Structure):
    """`Job` of job.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("keep", ctypes.c_void_p),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("number", ctypes.c_int32),
        ("output_number", ctypes.c_int32),
        ("base", ctypes.c_int32),
    )


@dataclass(frozen=True)
class FusedKernel:
    """The kernel of one form."""

    library: ctypes.CDLL
    form: str

    def form_weight(
        self,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        packed_keep: Tensor | None,
        *,
        base: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """What `form_in_strips` gives, for tensors that `fits`."""
        (rows, columns), rank = weight.shape, a.shape[0]
        output = torch.empty_like(weight, dtype=dtype)
        job = FusedJob(
            weight.data_ptr(),
            None if packed_keep is None else packed_keep.data_ptr(),
            a.data_ptr(),
            b.data_ptr(),
            output.data_ptr(),
            *(rows, columns, rank),
            *(NUMBERS[weight.dtype], NUMBERS[dtype], int(base)),
        )
        failed = self.library.sparsemend_fuse(
            FORMS.index(self.form), ctypes.byref(job), threads(rows * columns)
        )
        if failed:
            raise MemoryError(f"no memory for a copy of {a.nbytes} bytes")
        return output


def fits(
    weight: Tensor, a: Tensor, b: Tensor, packed_keep: Tensor | None, dtype: torch.dtype
) -> bool:
    """Whether a kernel takes these: on the CPU, contiguous, factors fp32."""
    tensors = [t for t in (weight, a, b, packed_keep) if t is not None]
    return (
        all(t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        and a.dtype == b.dtype == torch.float32
        and weight.dtype in NUMBERS
        and dtype in NUMBERS
        and weight.dtype in (dtype, torch.float32)
        and min(*weight.shape, *a.shape) > 0
        and weight.shape[1] >= LEAST_COLUMNS
    )


def kernel_for(rank: int) -> FusedKernel | None:
    """The kernel for factors of this rank, None where torch forms the weight."""
    kernel = _kernel(os.environ.get(KEY, ""))
    return kernel if kernel is not None and _agrees(kernel, rank) else None


@cache
def _kernel(asked: str) -> FusedKernel | None:
    if asked == TORCH:
        return None
    try:
        library = open_library(MAIN)
    except NoKernels as reason:
        log.info("torch forms masked weights, strip by strip: %s", reason)
        return None
    best = FORMS[library.sparsemend_fuse_form()]
    form = asked if asked in FORMS[: FORMS.index(best)] else best
    return None if form == "none" else FusedKernel(library, form)


@cache
def _agrees(kernel: FusedKernel, rank: int) -> bool:
    """Whether the kernel gives torch's bits, on a strip and a row more, and a broken panel."""
    generator = torch.Generator().manual_seed(rank)
    rows, columns = STRIP_ROWS + 1, 203

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight, a, b = random(rows, columns), random(rank, columns), random(rows, rank)
    keep = pack(random(rows, columns) > 0)
    ours = kernel.form_weight(weight, a, b, keep, base=1.0, dtype=torch.float32)
    return torch.equal(ours, form_in_strips(weight, a, b, keep, base=1.0, dtype=torch.float32))

"""The compiled kernels for a CPU.

A kernel adds up B A in the order of the rank by fused multiply-adds, whatever the shape and the
number of threads.  So does torch's product with MKL for most shapes, on most processors; where it
does not, the two differ in rounding.  Without a compiler or AVX2 torch forms the
weight, in about twice the time.  $SPARSEMEND_ENGINE=torch asks for that, and avx2 for that form.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # before the library, whose OpenMP is then torch's
from torch import Tensor

from sparsemend.engine.build import TORCH, NoKernels, asked_form, load_library
from sparsemend.engine.library import threads
from sparsemend.method.adapter.fused.plain import form_in_strips
from sparsemend.sparse.packing import pack

log = logging.getLogger(__name__)

MAIN = Path(__file__).parent / "source" / "fused.cpp"
FORMS = ("none", "avx2", "avx512")  # as in fused.cpp, worst first
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
    )


def kernel() -> FusedKernel | None:
    """The best kernel, or the one asked for; None where torch forms the weight."""
    return _kernel(asked_form())


@cache
def _kernel(asked: str) -> FusedKernel | None:
    if asked == TORCH:
        return None
    try:
        library = load_library(MAIN)
        best = FORMS[library.sparsemend_fuse_form()]
        form = asked if asked in FORMS[: FORMS.index(best)] else best
        if form == "none":
            raise NoKernels("this processor has neither AVX2 nor AVX-512")
        kernel = FusedKernel(library, form)
        if not _is_right(kernel):
            raise NoKernels("the compiled kernels give wrong weights")
    except NoKernels as reason:
        log.info("torch forms masked weights, strip by strip: %s", reason)
        return None
    return kernel


def _is_right(kernel: FusedKernel) -> bool:
    """Whether a small weight of small integers comes out exactly, as torch's does."""
    weight, a, b = (
        (torch.arange(rows * columns).reshape(rows, columns) % 7 - 3).float()
        for rows, columns in ((13, 203), (5, 203), (13, 5))
    )
    operands = (weight, a, b, pack(weight > 0))
    return all(
        torch.equal(
            kernel.form_weight(*operands, base=1.0, dtype=dtype),
            form_in_strips(*operands, base=1.0, dtype=dtype),
        )
        for dtype in NUMBERS
    )

"""The compiled kernels as functions on tensors.

Tensors are contiguous and on the CPU; what an input, its weights and its output may be is checked
by `operator`, and what comes from a file by `PackedWeight.check`: a kernel checks nothing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch  # before the library: its OpenMP, and so its pool of threads, is then used by both
from torch import Tensor

from sparsemend.engine.build import FORMS, load_library
from sparsemend.engine.packed import ROWS

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # as in job.h
PAIRS = "avx512_bf16"  # multiplies pairs of bfloat16
AMX = "amx"  # its tiles multiply any number of tokens, from TILED on, of bfloat16 by exact bfloat16
TILED = 5  # FEW of amx.h, and one
SHARE = 1 << 17  # weights per thread below which waking another costs more than it saves


class Matrix(ctypes.Structure):
    """A matrix as the kernels see it: `Matrix` of job.h."""

    _fields_ = (
        ("mask", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("number", ctypes.c_int32),
    )


@dataclass(slots=True)  # frozen ones take microseconds to make
class Factor:
    """The tensors of a product besides its input; mask and offsets are None where it is dense."""

    mask: Tensor | None
    values: Tensor
    offsets: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    rows: int

    def matrix(self, columns: int) -> Matrix:
        return Matrix(
            _address(self.mask),
            self.values.data_ptr(),
            _address(self.offsets),
            _address(self.scale),
            _address(self.bias),
            self.rows,
            columns,
            NUMBERS[self.values.dtype],
        )


@dataclass(frozen=True)
class Kernels:
    """The kernels of one form."""

    library: ctypes.CDLL
    form: str

    def multiply(self, tokens: Tensor, factor: Factor) -> Tensor:
        """(T, rows) = tokens (T, columns) W^T * scale + bias, in the tokens' dtype."""
        count, columns = tokens.shape
        output = tokens.new_empty(count, factor.rows)
        failed = self.library.sparsemend_multiply(
            FORMS.index(self.form),
            ctypes.byref(factor.matrix(columns)),
            ctypes.c_void_p(tokens.data_ptr()),
            NUMBERS[tokens.dtype],
            ctypes.c_int64(count),
            ctypes.c_void_p(output.data_ptr()),
            threads(factor.rows * columns),
        )
        assert not failed, f"no product of {tokens.dtype} with {factor.values.dtype}"
        return output

    def expand_(self, output: Tensor, factor: Factor, columns: int, begin: int, end: int) -> None:
        """Write the stored values of groups begin to end - 1 into output (rows, whole tiles)."""
        failed = self.library.sparsemend_expand(
            FORMS.index(self.form),
            ctypes.byref(factor.matrix(columns)),
            ctypes.c_int64(begin),
            ctypes.c_int64(end),
            ctypes.c_void_p(output.data_ptr()),
            NUMBERS[output.dtype],
            threads((end - begin) * ROWS * columns),
        )
        assert not failed, f"no expansion of {factor.values.dtype} into {output.dtype}"

    def read(self, tensor: Tensor) -> int:
        """The sum of a contiguous tensor's whole 64-bit words: the fastest reading there is."""
        total = self.library.sparsemend_read(
            ctypes.c_void_p(tensor.data_ptr()),
            ctypes.c_int64(tensor.nbytes // 8),
            threads(tensor.nbytes),
        )
        return int(total)


def load_kernels() -> ctypes.CDLL:
    """The engine's library; raises NoKernels."""
    library = load_library()
    library.sparsemend_read.restype = ctypes.c_uint64
    return library


def best_form(library: ctypes.CDLL) -> str:
    """The best form that this processor can run."""
    return FORMS[library.sparsemend_best_form()]


def threads(weights: int) -> int:
    """As many of torch's threads as have enough to do."""
    return max(1, min(torch.get_num_threads(), weights // SHARE))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

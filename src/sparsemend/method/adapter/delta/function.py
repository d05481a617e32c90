"""A linear with a sparse delta beside its weight, as an autograd function with three kernels.

    y = x (W + d)^T + bias,   d[i_j] = v_j at the k flat positions i = row * I + column
    dx = D (W + d)            dv_j = sum_b D[b, row_j] x[b, column_j]

No kernel keeps more for the backward pass than x and references to W, i and v:

    scatter   W + d lies in W, dv is gathered from the weight-sized D^T x
    gather    W + d lies in W, dv are k products of two columns (torch.sparse.sampled_addmm)
    sparse    nothing lies in W: x W^T and a product with d in CSR, added up

W + d lies in W for the time of a product (`patch_weight`): k weights are written over and put back.
While a window is open the weight-sized gradient is formed once, shown to it, gathered from and
freed, whatever the kernel.  The sum W + v is taken in fp32 and rounded once: in bf16, values below
half a spacing of W would vanish one by one.  (SpIEL, Ansell et al. 2024, arXiv 2401.16405, has the
first two; its code adds in the dtype of W.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from sparsemend.method.adapter.low_rank import wider

KERNELS = ("scatter", "gather", "sparse")
CHUNK = 2**24  # entries of the two gathered blocks of `column_products`: 64 MiB each in fp32
Observer = Callable[[Tensor], None]  # sees the weight-sized gradient (O, I) of one backward call


@dataclass(frozen=True)
class DeltaSettings:
    """One of KERNELS, and the dtype of the products."""

    kernel: str
    dtype: torch.dtype


def has_sparse_products(device: torch.device) -> bool:
    """Whether torch multiplies CSR matrices there: by cuSPARSE or MKL."""
    on_cpu = device.type == "cpu" and torch.backends.mkl.is_available()
    return on_cpu or device.type == "cuda"


def with_delta(weight: Tensor, indices: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """W + d, (O, I), contiguous: summed in fp32 at the k positions, rounded once to `dtype`."""
    position = indices.long()
    total = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    summed = weight.reshape(-1)[position].to(values.dtype) + values
    total.view(-1)[position] = summed.to(dtype)
    return total


@contextmanager
def patch_weight(
    weight: Tensor, indices: Tensor, values: Tensor, dtype: torch.dtype
) -> Iterator[Tensor]:
    """`with_delta`'s bits while the body runs, in the storage of W, whose bits then come back.

    That takes O(k).  Products of another dtype, a compiler that must see no such write, and a
    weight that another process reads get a copy.
    """
    elsewhere = weight.device.type == "cpu" and weight.is_shared()
    if dtype != weight.dtype or not weight.is_contiguous() or elsewhere or is_compiling():
        yield with_delta(weight, indices, values, dtype)
        return
    flat = weight.data.view(-1)  # .data: the version that autograd compares stays the same
    position = indices.long()
    kept = flat[position]
    try:
        flat[position] = (kept.to(values.dtype) + values.detach()).to(dtype)
        yield weight.data
    finally:
        flat[position] = kept


def csr(indices: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """d as a CSR matrix (O, I); indices (k,) ascend."""
    rows, columns = shape
    edges = torch.arange(rows + 1, device=indices.device, dtype=torch.int64) * columns
    starts = torch.searchsorted(indices.long(), edges)
    return csr_int32(starts, indices % columns, values, shape)


def transposed_csr(indices: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """d^T as a CSR matrix (I, O)."""
    rows, columns = shape
    column, order = (indices % columns).sort(stable=True)
    edges = torch.arange(columns + 1, device=indices.device, dtype=column.dtype)
    starts = torch.searchsorted(column.contiguous(), edges)
    return csr_int32(
        starts, (indices // columns)[order], values[order], torch.Size((columns, rows))
    )


def csr_int32(starts: Tensor, columns: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """A CSR matrix with 32-bit indices, the kind for which MKL and cuSPARSE are fast."""
    return torch.sparse_csr_tensor(
        starts.int(), columns.int(), values, shape, check_invariants=False
    )


def sampled_products(d: Tensor, x: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    """dv (k,) in fp32 or wider: products of columns of d (T, O) and x (T, I) at the positions."""
    wide = wider(d.dtype)
    if not has_sparse_products(d.device):
        return column_products(d, x, indices, shape)
    pattern = csr(indices, torch.zeros(indices.shape, dtype=wide, device=d.device), shape)
    return torch.sparse.sampled_addmm(pattern, d.to(wide).T, x.to(wide), beta=0.0).values()


def column_products(d: Tensor, x: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    """`sampled_products` without a sparse library: columns side by side, a chunk at a time."""
    wide = wider(d.dtype)
    left, right = d.T.contiguous(), x.T.contiguous()
    rows, columns = indices // shape[1], indices % shape[1]
    products = torch.empty(indices.shape, dtype=wide, device=d.device)
    chunk = max(1, CHUNK // max(1, d.shape[0]))
    for start in range(0, indices.numel(), chunk):
        part = slice(start, start + chunk)
        products[part] = (left[rows[part]].to(wide) * right[columns[part]]).sum(dim=1)
    return products


class DeltaFunction(torch.autograd.Function):
    """apply(x (..., I), W (O, I), v (k,), i (k,), alive (k,) | None, bias, settings, observer).

    Layers give rows x (T, I), see `rows`.  i ascends.  alive 0: that value's gradient is 0.
    observer None: no window is open.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        values: Tensor,
        indices: Tensor,
        alive: Tensor | None,
        bias: Tensor | None,
        settings: DeltaSettings,
        observer: Observer | None,
    ) -> Tensor:
        if ctx.needs_input_grad[1]:
            raise RuntimeError("sparse deltas train beside a frozen weight; freeze the weight")
        ctx.save_for_backward(x, weight, values, indices, alive)
        ctx.settings, ctx.observer = settings, observer
        ctx.bias_dtype = None if bias is None else bias.dtype
        dtype = settings.dtype
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(dtype).flatten(0, -2)
            with _effective(weight, indices, values, settings) as effective:
                if bias is None:
                    y = rows @ effective.T
                else:
                    y = torch.addmm(bias.to(dtype), rows, effective.T)
            if settings.kernel == "sparse":
                delta = csr(indices, values, weight.shape)
                y += (delta @ rows.to(values.dtype).T).T
        return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices, alive = ctx.saved_tensors
        dtype = ctx.settings.dtype
        dx = dv = dbias = None
        with torch.autocast(x.device.type, enabled=False):
            d = gradient.to(dtype).flatten(0, -2)
            if ctx.needs_input_grad[0]:
                dx = _input_gradient(d, weight, values, indices, ctx.settings)
                dx = dx.view(x.shape).to(x.dtype)
            if ctx.needs_input_grad[2]:
                rows = x.to(dtype).flatten(0, -2)
                dv = _value_gradient(d, rows, weight.shape, indices, ctx.settings, ctx.observer)
                dv = dv.to(values.dtype)
                if alive is not None:
                    dv = dv * (alive != 0)
            if ctx.needs_input_grad[5]:
                dbias = d.sum(dim=0, dtype=wider(d.dtype)).to(ctx.bias_dtype)
        return dx, None, dv, None, None, dbias, None, None


def _effective(
    weight: Tensor, indices: Tensor, values: Tensor, settings: DeltaSettings
) -> AbstractContextManager[Tensor]:
    """What a product with the weight reads: W + d, or W where d has a product of its own."""
    if settings.kernel == "sparse":
        return nullcontext(weight.to(settings.dtype))
    return patch_weight(weight, indices, values, settings.dtype)


def _input_gradient(
    d: Tensor, weight: Tensor, values: Tensor, indices: Tensor, settings: DeltaSettings
) -> Tensor:
    """D (W + d), (T, I)."""
    with _effective(weight, indices, values, settings) as effective:
        dx = d @ effective
    if settings.kernel == "sparse":
        dx += (transposed_csr(indices, values, weight.shape) @ d.to(values.dtype).T).T
    return dx


def _value_gradient(
    d: Tensor,
    x: Tensor,
    shape: torch.Size,
    indices: Tensor,
    settings: DeltaSettings,
    observer: Observer | None,
) -> Tensor:
    """dv (k,); forms the weight-sized gradient where a window or the kernel asks for it."""
    if observer is None and settings.kernel != "scatter":
        return sampled_products(d, x, indices, shape)
    dense = d.T @ x
    dv = dense.view(-1)[indices.long()]
    if observer is not None:
        observer(dense)  # last: it may average over processes in place
    return dv

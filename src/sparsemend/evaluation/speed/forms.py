"""The forms in which a sparse weight can be stored and multiplied.

dense: as in an export, by torch.  engine: dense too, by the kernels of `engine` on a CPU, which
tell what those buy without a zero.  packed: bits and values, by the same kernels, or by those of
Triton on a card.  The others are torch's own.  csr: one index per non-zero.  bsr: whole blocks, so
that only blocks that are entirely zero are saved.  semi_structured: 2:4 on the sparse tensor cores
of an NVIDIA GPU.  A form says why it cannot serve a weight: ValueError.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemend.engine.choice import kernels
from sparsemend.engine.convert import pack_linear
from sparsemend.engine.library import Factor, Kernels
from sparsemend.engine.linear import PackedLinear
from sparsemend.engine.on_cuda import multiplied_by_triton
from sparsemend.engine.operator import FEW
from sparsemend.engine.two_four import compress_two_four, multiply_two_four, stored_parts

DENSE = "dense"


class Product(nn.Module):
    """x W^T + b for a weight in some form; `stored` are the tensors which that form keeps."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stored: list[Tensor]) -> None:
        super().__init__()
        # no parameters: a sparse tensor in the module tree breaks generic code that walks it
        self.form = (weight, bias)
        self.stored = stored if bias is None else [*stored, bias]

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.form
        return F.linear(input, weight, bias)


class MatrixProduct(Product):
    """The same product as W x^T: CSR and BSR have that on a CPU, but not F.linear."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.form
        rows = input.reshape(-1, input.shape[-1])
        output = (weight @ rows.T).T.reshape(*input.shape[:-1], -1)
        return output if bias is None else output + bias


def dense(linear: nn.Linear) -> Product:
    return Product(linear.weight, linear.bias, [linear.weight])


class PackedProduct(Product):
    """The product with bits and values."""

    def __init__(self, packed: PackedLinear) -> None:
        stored = [tensor for tensor in packed.buffers() if tensor is not packed.bias]
        super().__init__(packed.values, packed.bias, stored)
        self.packed = [packed]  # no child: what walks the modules then meets no buffers

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.packed[0](input)
        return output


class EngineProduct(Product):
    """The product with a dense weight by the engine's kernels; many tokens are torch's."""

    def __init__(self, linear: nn.Linear, chosen: Kernels) -> None:
        super().__init__(linear.weight, linear.bias, [linear.weight])
        bias = None if linear.bias is None else linear.bias.float()
        self.factor = Factor(None, linear.weight, None, None, bias, linear.out_features)
        self.chosen = chosen

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.reshape(-1, input.shape[-1])
        if len(tokens) > FEW[input.dtype]:
            return super().forward(input)
        product = self.chosen.multiply(tokens.contiguous(), self.factor)
        return product.view(*input.shape[:-1], self.factor.rows)


def by_engine(linear: nn.Linear) -> Product:
    chosen = _kernels_for(linear)
    if linear.weight.dtype not in FEW:
        raise ValueError(f"the engine multiplies by no dense weight of {linear.weight.dtype}")
    return EngineProduct(linear, chosen)


def _kernels_for(linear: nn.Linear) -> Kernels:
    if linear.weight.device.type != "cpu":
        raise ValueError("products of the engine exist on a CPU only")
    if (chosen := kernels()) is None:
        raise ValueError("the engine has no kernels here, as a warning said")
    return chosen


def bits_and_values(linear: nn.Linear) -> Product:
    weight = linear.weight
    if weight.device.type != "cuda":
        _kernels_for(linear)
    elif not multiplied_by_triton(weight.device):
        raise ValueError(f"no Triton kernel multiplies on {weight.device}, as a warning said")
    packed = pack_linear(linear, values=str(weight.dtype).removeprefix("torch."))
    return PackedProduct(packed.to(weight.device))


def csr(linear: nn.Linear) -> Product:
    with _beta_state_expected():
        weight = linear.weight.detach().to_sparse_csr()
    narrow = _narrow(weight)
    return MatrixProduct(narrow, linear.bias, _parts(narrow))


def bsr(linear: nn.Linear, block: int) -> Product:
    for length in linear.weight.shape:
        if length % block:
            raise ValueError(f"a side of {length} is not a multiple of the block, {block}")
    with _beta_state_expected():
        weight = linear.weight.detach().to_sparse_bsr((block, block))
    narrow = _narrow(weight)
    return MatrixProduct(narrow, linear.bias, _parts(narrow))


class TwoFourProduct(Product):
    """The product on sparse tensor cores."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.form
        return multiply_two_four(input, weight, bias)


def semi_structured(linear: nn.Linear) -> Product:
    compressed = compress_two_four(linear.weight.detach())
    return TwoFourProduct(compressed, linear.bias, stored_parts(compressed))


def form_builders(block: int) -> dict[str, Callable[[nn.Linear], Product]]:
    """Form name -> the function that builds it from a linear."""
    return {
        DENSE: dense,
        "engine": by_engine,
        "packed": bits_and_values,
        "csr": csr,
        "bsr": lambda linear: bsr(linear, block),
        "semi_structured": semi_structured,
    }


FORMS = tuple(form_builders(1))


def _narrow(weight: Tensor) -> Tensor:
    """The weight with int32 indices: half their memory, and the type MKL and cuSPARSE read."""
    rows, columns = weight.crow_indices().int(), weight.col_indices().int()
    with _beta_state_expected():
        return torch.sparse_compressed_tensor(
            rows,
            columns,
            weight.values(),
            weight.shape,
            layout=weight.layout,
            check_invariants=False,  # the same entries, checked when they were made
        )


def _parts(weight: Tensor) -> list[Tensor]:
    return [weight.crow_indices(), weight.col_indices(), weight.values()]


@contextmanager
def _beta_state_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta state")
        yield

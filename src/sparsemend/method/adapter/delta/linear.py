"""The layer of sparse deltas: k positions and k trained values beside a frozen sparse weight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from time import perf_counter

import torch
from torch import Tensor, nn

from sparsemend.method.adapter.delta.function import (
    KERNELS,
    DeltaFunction,
    DeltaSettings,
    has_sparse_products,
    with_delta,
)
from sparsemend.method.adapter.delta.window import Window
from sparsemend.method.adapter.fold import adapters
from sparsemend.method.adapter.low_rank import wider
from sparsemend.method.adapter.rows import by_rows
from sparsemend.sparse.drop_and_grow import Move
from sparsemend.sparse.linear import SparseLinear

KERNEL_CHOICES = (*KERNELS, "by_device", "auto")
# by_device: gather, which `sparsemend-bench` says is fastest on a CPU, so that equal runs have
# equal bits there; what is fastest on these is not known and is measured, as by auto
UNKNOWN = {"cuda", "mps", "xpu"}


class DeltaLinear(SparseLinear):
    """x (W + d)^T + bias with d sparse; indices (k,) ascend, values (k,) are fp32.

    The delta may lie off the support of W, which does not change; at most k entries of the
    effective weight are then off the support.
    """

    holds_support = False
    moving: tuple[str, ...] = ("indices",)

    indices: Tensor

    def __init__(self, base: SparseLinear, positions: Tensor, kernel: str) -> None:
        """Take over `base`; positions (k,) are distinct flat indices, in any order."""
        super().__init__(base.weight, base.bias, base.keep)
        dtype = torch.int32 if base.weight.numel() < 2**31 else torch.int64
        sorted_positions = positions.sort().values.to(base.weight.device, dtype)
        self.register_buffer("indices", sorted_positions)
        start = torch.zeros(positions.shape, dtype=wider(base.weight.dtype))
        self.values = nn.Parameter(start.to(base.weight.device))
        self.starting_count = int(base.keep.count_nonzero())  # size of the support before training
        self.kernel = kernel
        self.window: Window | None = None

    @property
    def training_slots(self) -> Tensor | None:
        """(k,), 0 where a value does not train; None: all do."""
        return None

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    def effective_weight(self) -> Tensor:
        return with_delta(self.weight, self.indices, self.values, self.weight.dtype)

    @torch.no_grad()
    def set_effective_(self, weight: Tensor, keep: Tensor) -> None:
        """Make `weight * keep` the base and the effective weight: values start again at 0."""
        super().set_effective_(weight, keep)
        self.values.zero_()

    def forward(self, input: Tensor) -> Tensor:
        device, dtype = input.device.type, self.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if self.kernel not in KERNELS:
            self.kernel = chosen_kernel(self, rows=input.numel() // input.shape[-1])
        return by_rows(partial(self._product, DeltaSettings(self.kernel, dtype)), input)

    def _product(self, settings: DeltaSettings, rows: Tensor) -> Tensor:
        output: Tensor = DeltaFunction.apply(
            rows,
            self.weight,
            self.values,
            self.indices,
            self.training_slots,
            self.bias,
            settings,
            None if self.window is None else self._observe,
        )
        return output

    def _observe(self, gradient: Tensor) -> None:
        if self.window is not None:
            self.window.observe(gradient, self)

    def growable(self) -> Tensor | None:
        """Where deltas may grow, bool (O, I); None: everywhere."""
        return None

    def prunable(self) -> Tensor:
        """Where a window follows the sensitivity of weights, bool (O, I)."""
        return self.keep

    @torch.no_grad()
    def replace_(self, move: Move) -> Tensor:
        """Carry out `move` with values 0; return the slots (P,) that are now new growth."""
        self.indices[move.slots] = move.positions.to(self.indices.dtype)
        self.values[move.slots] = 0
        return move.slots

    @torch.no_grad()
    def sort_(self) -> Tensor:
        """Sort the slots by position; return the order (k,), which other state must follow."""
        order = self.indices.argsort()
        self.indices.copy_(self.indices[order])
        self.values.copy_(self.values[order])
        return order


def delta_linears(model: nn.Module) -> Iterator[tuple[str, DeltaLinear]]:
    """(full name, module) of every DeltaLinear, in module order."""
    for name, linear in adapters(model):
        if isinstance(linear, DeltaLinear):
            yield name, linear


def chosen_kernel(linear: DeltaLinear, *, rows: int) -> str:
    """The kernel that `by_device` or `auto` stands for on `rows` inputs, on the weight's device."""
    if linear.kernel == "by_device" and linear.weight.device.type not in UNKNOWN:
        return "gather"
    return fastest_kernel(linear, rows=rows)


def fastest_kernel(linear: DeltaLinear, *, rows: int) -> str:
    """The kernel that takes least time on `rows` inputs, measured once per shape and device."""
    weight = linear.weight
    return _fastest(tuple(weight.shape), linear.indices.numel(), rows, weight.dtype, weight.device)


@cache
def _fastest(
    shape: tuple[int, int], count: int, rows: int, dtype: torch.dtype, device: torch.device
) -> str:
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng([]):
        weight = torch.randn(shape, dtype=dtype, device=device)
        x = torch.randn(rows, shape[1], dtype=dtype, device=device, requires_grad=True)
        spacing = torch.linspace(0, weight.numel() - 1, count, dtype=torch.float64)
        indices = spacing.int().to(device)
        values = torch.zeros(count, dtype=wider(dtype), device=device, requires_grad=True)
        seconds = {}
        for kernel in KERNELS if has_sparse_products(device) else KERNELS[:2]:
            settings = DeltaSettings(kernel, dtype)
            times = []
            for _ in range(4):
                _wait(device)
                started = perf_counter()
                y = DeltaFunction.apply(x, weight, values, indices, None, None, settings, None)
                y.backward(y.detach())
                _wait(device)
                times.append(perf_counter() - started)
            seconds[kernel] = min(times[1:])  # the first one warms up
    return min(seconds, key=lambda kernel: seconds[kernel])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

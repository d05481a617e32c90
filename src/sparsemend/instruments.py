"""The cost of a piece of work: seconds, arithmetic, tensors kept for backward, peak tensor bytes.

Each is measured by itself, since each instrument slows or keeps alive what another would count.
Products inside fused kernels that torch's FLOP counter does not know (attention on CPU, kernels
written by hand) are not in the FLOPs; element-wise work never is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparsemend.cost import Stages


def time_and_peak(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """(seconds, peak bytes) of `work`; the peak is the process's, as `Stages.peak_scope` says."""
    stages = Stages(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = perf_counter()
    with stages.measure("work"):
        work()
    return perf_counter() - started, stages.costs["work"].peak_bytes  # measure() synchronizes


def saved_bytes(
    forward: Callable[[], object], *, living: Iterable[Tensor], linears: Sequence[nn.Module]
) -> int:
    """Bytes that autograd keeps from `forward` for its backward, every storage once.

    Not counted: the tensors `living` (parameters, buffers) and the inputs of `linears`.  What a
    custom function hides outside save_for_backward is not seen.
    """
    saved: dict[int, UntypedStorage] = {}  # held, as are the inputs, so that no address is reused
    inputs: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs.append(arguments[0])

    with ExitStack() as stack:
        for linear in linears:
            stack.callback(linear.register_forward_pre_hook(note).remove)
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        forward()
    exempt = {tensor.untyped_storage().data_ptr() for tensor in (*living, *inputs)}
    return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in exempt)


def flops(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """(forward, backward) floating point operations; a multiply-add is two.

    Recomputation during backward (activation checkpointing) counts as backward.  Gradients stay.
    """
    with FlopCounterMode(display=False, custom_mapping=SPARSE_PRODUCTS) as counter:
        loss = forward()
        ahead = counter.get_total_flops()
        loss.backward()
    return ahead, counter.get_total_flops() - ahead


def _product(left: Tensor, right: Tensor, **_: Any) -> int:
    """Operations of left @ right, where left may be sparse: torch counts it as if it were dense."""
    entries = left.numel() if left.layout is torch.strided else left._nnz()
    return 2 * entries * right.shape[1]


def _sampled_product(pattern: Tensor, left: Tensor, right: Tensor, **_: Any) -> int:
    return 2 * pattern._nnz() * left.shape[1]


SPARSE_PRODUCTS = {
    torch.ops.aten.mm: _product,
    torch.ops.aten.sparse_sampled_addmm: _sampled_product,
}
for _formula in SPARSE_PRODUCTS.values():
    _formula._get_raw = True  # type: ignore[attr-defined]  # the tensors, not their shapes


def work_counts(work: Callable[[], object]) -> tuple[int, int]:
    """(floating point operations, calls of torch's operators) of `work`, without gradients.

    A multiply-add is two operations.  What a custom operator computes counts by its own formula,
    and its calls as one; element-wise work, sorts and attention on a CPU are not in the operations.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FACTORISATIONS)
    with torch.no_grad(), counter, OperatorCalls() as calls:
        work()
    return counter.get_total_flops(), calls.count


class OperatorCalls(TorchDispatchMode):
    """Counts the operators that torch is asked for while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _added_product(total: Tensor, left: Tensor, right: Tensor, **_: Any) -> int:
    return _product(left, right)


def _cholesky(matrix: Tensor, **_: Any) -> int:
    return matrix.shape[-1] ** 3 // 3


def _triangular(matrix: Tensor, right: Tensor, **_: Any) -> int:
    return matrix.shape[-1] ** 2 * right.shape[-1]


def _eigenvalues(matrix: Tensor, *_: Any, **__: Any) -> int:
    """Of the reduction to a tridiagonal matrix, which the rest is small beside."""
    return 4 * matrix.shape[-1] ** 3 // 3


FACTORISATIONS = {
    torch.ops.aten.addmm_: _added_product,
    torch.ops.aten.linalg_cholesky_ex: _cholesky,
    torch.ops.aten.linalg_solve_triangular: _triangular,
    torch.ops.aten._linalg_eigh: _eigenvalues,
}
for _formula in FACTORISATIONS.values():
    _formula._get_raw = True  # type: ignore[attr-defined]


def peak_bytes(work: Callable[[], object], held: Sequence[Tensor], device: torch.device) -> int:
    """Peak bytes of tensors alive during `work`, `held` (model, optimizer state) among them.

    On CUDA the rise of torch's allocator above its start, plus `held`; elsewhere `LiveBytes`.
    Whatever else the process holds is not counted, so models may share a process.
    """
    if device.type != "cuda":
        with LiveBytes(held) as live:
            work()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    held_bytes = sum(storage.nbytes() for storage in storages.values())
    return torch.cuda.max_memory_allocated(device) - start + held_bytes


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensor storages alive, now and at their peak, while the mode is on.

    Every storage that an operator returns counts from then until it is freed, whoever holds it
    (Python, autograd, the optimizer); `held` counts from the start.  Equal on every machine and
    allocator, and deterministic, which resident memory is not; scratch space inside one kernel is
    not seen.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        if tensor.is_meta:
            return  # its storage has a size, and no memory
        if tensor.layout is torch.sparse_csr:
            for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
                self._note(part)
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def on_free(reference: weakref.ref[UntypedStorage]) -> None:
            del self._alive[key]
            self.live -= size

        self._alive[key] = weakref.ref(storage, on_free)
        self.live += size
        self.peak = max(self.peak, self.live)

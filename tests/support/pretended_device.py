"""A second device that exists only in this process: real values, checked placement.

`far:0` is torch's PrivateUse1 device as a Python backend.  A `Far` tensor reports that device and
holds its values in a CPU tensor; `pretended_device()` puts a dispatch mode over every operator that
computes on those values and raises `Misplaced` where a CUDA build of torch would refuse:

    operands on both devices (CPU scalars of no dimension and CPU indices of a far tensor apart),
    a CPU generator for a far tensor, a far index of a CPU tensor, `.numpy()` of a far tensor,
    and, where `torch.use_deterministic_algorithms` is on, an operator that CUDA has in no
    deterministic form.

It counts what makes a host wait for a GPU, the bytes that cross, and the operators that are not
deterministic on CUDA, each by the line of sparsemend that called them.

What it cannot see: kernels and their rounding, streams and NCCL, the cast lists of autocast,
memory, sparse CSR tensors, `inference_mode` (which it replaces by `no_grad`), whatever
asks `device.type == "cuda"`, and the tags of devices in a saved file: a far tensor is pickled as a
CPU tensor, and all checkpoints are read to the host here.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import sparsemend

PACKAGE = f"{Path(sparsemend.__file__).parent}/"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
# Operators that raise on CUDA under torch.use_deterministic_algorithms (its docstring), those that
# a language model or this package could call.
ONLY_INTEGERS = {"cumsum"}  # of which the integer form is deterministic
RAISES = {"kthvalue", "put_", "histc", "median", "cumsum", "index_reduce", "index_reduce_"}
# Those that are not deterministic unless the switch is on.
UNORDERED = {
    "index_add",
    "index_add_",
    "index_copy_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "embedding_dense_backward",
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
}


class Misplaced(RuntimeError):
    """A call that a CUDA build of torch would refuse."""


@dataclass
class Seen:
    """Counts by the place in sparsemend: `file.py:line`, or ? for a call from elsewhere."""

    waits: Counter[str] = field(default_factory=Counter)
    bytes_moved: Counter[str] = field(default_factory=Counter)
    unordered: Counter[tuple[str, str]] = field(default_factory=Counter)  # (operator, place)
    operators: int = 0  # that computed on the device
    has_fp64: bool = True  # False, as of MPS: a float64 tensor is refused


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def get_rng_state(self, device: object = 0) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = 0) -> None:
        pass  # the values come from the CPU's generator, whose state the caller restores too

    def set_device(self, device: object) -> None:
        pass

    def synchronize(self, device: object = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend("far", backend_module=_Backend())
FAR = torch.device("far", 0)
seen = Seen()


def is_far(device: object) -> bool:
    return device is not None and torch.device(device).type == "far"  # type: ignore[arg-type]


class Far(torch.Tensor):
    """A tensor of the pretended device; `near` holds its values on the CPU."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor, requires_grad: bool = False) -> Far:
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=FAR,
            requires_grad=requires_grad,
        )
        far.near = near
        return far

    def __init__(self, near: torch.Tensor, requires_grad: bool = False) -> None:
        pass

    def __repr__(self, **settings: Any) -> str:
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def tolist(self) -> list[Any]:
        seen.waits[place()] += 1
        return self.near.detach().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: torch.Tensor = Far(self.near.detach().clone())
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.near.detach().clone().__reduce_ex__(protocol)

    def __format__(self, spec: str) -> str:
        return format(self.near.detach(), spec)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.near.untyped_storage()  # whose address tells tied weights

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.near.nbytes


def place(depth: int = 1) -> str:
    """The innermost lines of sparsemend on the stack, the calling one first."""
    lines: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(lines) < depth:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            lines.append(f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "?"


def refuse(func: Any, why: str) -> None:
    raise Misplaced(f"{func}: {why}, at {place(3)}")


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`func` on the values, checked as CUDA would; far results where CUDA's would be there."""
    flat, spec = tree_flatten((args, kwargs))
    fars = [x for x in flat if isinstance(x, Far)]
    if not fars and not is_far(kwargs.get("device")):
        return func(*args, **kwargs)
    check_generator(func, flat)
    if func is aten.copy_.default:
        return copy(*args)
    if func not in COPIES:
        check_operands(func, args, flat)
        note(func, args, flat)
    near_args, near_kwargs = tree_unflatten([near(x) for x in flat], spec)
    makes_far = bool(fars)
    if near_kwargs.get("device") is not None:
        makes_far = is_far(kwargs["device"])
        if func is aten._to_copy.default and makes_far != isinstance(args[0], Far):
            seen.bytes_moved[place()] += args[0].numel() * args[0].element_size()
    out = func(*near_args, **near_kwargs)
    if not makes_far:
        return out
    same = {id(x.near): x for x in fars}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, Far):
            return x
        if x.dtype == torch.float64 and not seen.has_fp64:
            refuse(func, "this device has no float64")
        return same[id(x)] if id(x) in same else Far(x)

    return tree_map(wrap, out)


def near(x: Any) -> Any:
    """What stands for an argument on the CPU."""
    if isinstance(x, Far):
        return x.near
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "far" else x


def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """`copy_`, the one operator whose operands may lie on both devices."""
    if isinstance(target, Far) != isinstance(source, Far) and source.dim():
        seen.bytes_moved[place()] += source.numel() * source.element_size()
    near(target).copy_(near(source))
    return target


def check_generator(func: Any, flat: list[Any]) -> None:
    if any(isinstance(x, torch.Generator) for x in flat):
        refuse(func, "a CPU generator for a far tensor")


def check_operands(func: Any, args: Any, flat: list[Any]) -> None:
    """Raise Misplaced where operands lie on both devices."""
    others = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Far)]
    if func in INDEXED:
        indices = {id(x) for x in args[1] if isinstance(x, torch.Tensor)}
        if not isinstance(args[0], Far):
            refuse(func, f"a far index or value for a CPU tensor {tuple(args[0].shape)}")
        if any(id(x) in indices for x in others):  # CUDA copies such an index to the device
            seen.waits[f"cpu index {place()}"] += 1
        others = [x for x in others if id(x) not in indices]
    written = func._schema.is_mutable and isinstance(args[0], torch.Tensor)
    if written and not isinstance(args[0], Far):
        refuse(func, "a far operand written into a CPU tensor")
    for other in others:
        if other.dim():
            refuse(func, f"tensors on far:0 and cpu {tuple(other.shape)}")


def note(func: Any, args: Any, flat: list[Any]) -> None:
    """Count what waits and what has no fixed order; raise where determinism is asked for."""
    seen.operators += 1
    masks = func in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1])
    if func in WAITS or masks:
        seen.waits[place()] += 1
    name = func._schema.name.split("::")[1]
    integers = name in ONLY_INTEGERS and not args[0].is_floating_point()
    weighted = name == "bincount" and len(args) > 1 and args[1] is not None
    raises = (name in RAISES and not integers) or weighted
    if raises and torch.are_deterministic_algorithms_enabled():
        refuse(func, "CUDA has no deterministic form of it")
    if raises or name in UNORDERED:
        seen.unordered[name, place()] += 1


class _Pretend(TorchDispatchMode):
    """Catches what makes a far tensor out of none, such as `torch.zeros(2, device="far")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> Far:
    return Far(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(
    size: Any,
    stride: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
) -> Far:
    return Far(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


# what autograd and the C++ of torch call below every mode
LIBRARY = torch.library.Library("aten", "IMPL")
LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
LIBRARY.impl(
    "_copy_from",
    lambda source, target, non_blocking=False: copy(target, source),
    "PrivateUse1",
)
LIBRARY.impl("_local_scalar_dense", lambda tensor: tensor.near.item(), "PrivateUse1")
AUTOCAST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
AUTOCAST.fallback(torch.library.fallthrough_kernel)


def _apply(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply`, which cannot change a CPU parameter into a far one in place.

    The parameter object stays where torch can swap its content, as on a real device.
    """
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            changed = change(parameter)
        if changed is parameter:
            continue
        made = nn.Parameter(changed.detach(), parameter.requires_grad)
        try:
            torch.utils.swap_tensors(parameter, made)
        except RuntimeError:  # something holds a weak reference to it
            module._parameters[name] = made
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


@contextlib.contextmanager
def pretended_device() -> Iterator[Seen]:
    """Inside, `far:0` works as a device; yields what is counted there, and what it has."""
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    applied, inference = nn.Module._apply, torch.inference_mode
    for counts in (seen.waits, seen.bytes_moved, seen.unordered):
        counts.clear()
    seen.operators, seen.has_fp64 = 0, True
    nn.Module._apply = _apply  # type: ignore[method-assign, assignment]
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.inference_mode = _no_inference  # type: ignore[misc, assignment]
    try:
        with _Pretend():
            yield seen
    finally:
        nn.Module._apply = applied  # type: ignore[method-assign]
        torch.__future__.set_swap_module_params_on_conversion(swapping)
        torch.inference_mode = inference  # type: ignore[misc]


def _no_inference(mode: bool = True) -> Any:
    return torch.no_grad() if mode else contextlib.nullcontext()

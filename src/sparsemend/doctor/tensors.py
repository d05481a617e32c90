"""Tensors without values, for a run of real code at real shapes that costs neither memory nor time.

Integers and small facts (tokens, orders, masks of attention) keep their values as long as nothing
unvalued enters them; weights and activations are FakeTensors, which know shape, dtype and device
alone.  Where the code asks such a tensor for a number or for a shape that depends on its values, it
gets the usual answer: everything is finite, nothing escaped, a support keeps its share of weights.

A second device is pretended by torch's PrivateUse1, so that the code moves tensors as it would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsemend.doctor.ledger import Ledger
from sparsemend.sparse import selection

aten = torch.ops.aten
NAME = "pretended"
VALUED = 2**26  # bytes of integers up to which a tensor keeps its values

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
COMPLEMENT = "_what_a_support_leaves"  # on a mask that is the complement of one
ANSWER = "_sparsemend_answer"
VALUES = "_sparsemend_values"


class Backend(backend_registration._DummyBackendModule):
    """What torch asks the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        return

    def set_device(self, device: Any) -> None:
        return

    def synchronize(self, device: Any = None) -> None:
        return

    def manual_seed(self, seed: int) -> None:
        return


def pretended_device() -> torch.device:
    """A device beside the host whose tensors have no memory; registered on first use."""
    name = torch._C._get_privateuse1_backend_name()
    if name == "privateuseone":
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
        name = NAME
    return torch.device(name, 0)


class DryTensors(TorchDispatchMode):
    """Runs operators on tensors without values and enters what they return in a ledger.

    density: the share of weights that a support keeps.
    """

    def __init__(self, ledger: Ledger, density: float) -> None:
        super().__init__()
        self.ledger, self.density = ledger, density
        self.fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Every operator inside runs without values."""
        moved = patch.object(nn.Module, "_apply", _move)
        ranked = patch.object(selection, "kth_lowest", _kth_lowest)
        shown = patch.object(FakeTensor, "__format__", lambda tensor, form: "unknown")
        attention = patch.object(functional, "scaled_dot_product_attention", _attention)
        with moved, ranked, shown, attention, self.fake, self:
            # `torch.tensor(1.0, device=...)` makes it on the host first
            before = torch._C._only_lift_cpu_tensors()
            torch._C._set_only_lift_cpu_tensors(True)
            try:
                yield
            finally:
                torch._C._set_only_lift_cpu_tensors(before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:  # inference mode does not take it apart
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            result = self._run_unvalued(func, args, kwargs)
        elif _elsewhere(kwargs.get("device")):
            args, kwargs = tree_map_only(Tensor, self.fake.from_tensor, (args, kwargs))
            result = func(*args, **kwargs)
        elif tensors or self._stays_valued(func, args, kwargs):
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.ledger.note(leaf)
        return result

    def _stays_valued(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether what a factory makes is worth its values: integers, and single numbers."""
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor):
            return False
        small = made.numel() * made.element_size() <= VALUED
        return small and (not made.dtype.is_floating_point or made.numel() == 1)

    def _run_unvalued(self, func: Any, args: Any, kwargs: Any) -> Any:
        packet = func.overloadpacket
        written = _tensors_written(func, args, kwargs)
        if torch.Tag.pointwise in func.tags and packet not in (aten.where, aten.masked_fill):
            self._note_casts(args)
        if any(not isinstance(tensor, FakeTensor) for tensor in written):
            return _return(func, written)  # its values are stale from now on: nobody reads them
        if written and _only_writes(func):
            return _return(func, written)  # nothing to compute, and no shape changes
        if packet in ANSWERS:
            return ANSWERS[packet](self, *args, **kwargs)
        result = func(*args, **kwargs)
        self._remember(packet, args, result)
        if packet in REDUCTIONS and args[0].dtype is not result.dtype:
            self._note_cast(args[0], result.dtype)
        return result

    def _note_casts(self, operands: Any) -> None:
        """Count the operands that an operator casts first, whole, to what it computes in."""
        tensors = [o for o in operands if isinstance(o, Tensor) and o.ndim]
        if len({tensor.dtype for tensor in tensors}) > 1:
            common = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
            for tensor in tensors:
                if tensor.dtype is not common:
                    self._note_cast(tensor, common)

    def _note_cast(self, tensor: Tensor, dtype: torch.dtype) -> None:
        """On a GPU the kernel itself casts, number by number."""
        if tensor.device.type == "cpu":
            self.ledger.scratch("cpu", tensor.numel() * dtype.itemsize)

    def _remember(self, packet: Any, args: Any, result: Any) -> None:
        """Note the usual answer of a result that decides something."""
        if packet is aten.linalg_cholesky_ex:
            setattr(result[1], ANSWER, 0)  # it succeeded
        if not isinstance(result, FakeTensor):
            return
        first = args[0] if args and isinstance(args[0], Tensor) else None
        answer: Any = None
        if packet is aten.all:
            answer = True
        elif packet is aten.any:
            answer = False
        elif packet is aten.masked_fill and result.numel() > 1:
            answer = 0  # what is off a support
        elif packet in (aten.count_nonzero, aten.sum) and result.numel() == 1 and first is not None:
            if packet is aten.count_nonzero or first.dtype is torch.bool:
                nothing = getattr(first, ANSWER, None) == 0
                answer = 0 if nothing else self.count_chosen(first)
        elif packet is aten.le and isinstance(args[1], Tensor):
            answer = getattr(args[1], ANSWER, None)  # of a threshold
        elif packet in (aten.bitwise_not, aten.logical_not) and first is not None:
            answer = 1 - self._share(first)
            setattr(result, COMPLEMENT, True)
        elif packet in (aten.bitwise_and, aten.logical_and) and result.dtype is torch.bool:
            answer = self._share_of_both(*args)
        elif packet in CARRY and first is not None:
            answer = getattr(first, ANSWER, None)
        if answer is not None:
            setattr(result, ANSWER, answer)

    def _share(self, mask: Tensor) -> float:
        answer = getattr(mask, ANSWER, None)
        return self.density if answer is None or isinstance(answer, int) else float(answer)

    def _share_of_both(self, one: Tensor, other: Tensor) -> float:
        """Of supports the smaller lies in the larger, so little is in one and not in the other."""
        shares = self._share(one), self._share(other)
        apart = getattr(one, COMPLEMENT, False) != getattr(other, COMPLEMENT, False)
        return max(0.0, sum(shares) - 1) if apart else min(shares)

    def count_chosen(self, mask: Tensor) -> int:
        """How many entries of a mask are True."""
        if not isinstance(mask, FakeTensor):
            with unset_fake_temporarily():
                return int(mask.count_nonzero())
        return max(1, math.ceil(mask.numel() * self._share(mask)))


REDUCTIONS = {aten.sum, aten.mean, aten.prod}
# what changes a tensor's shape, or its place, while it writes into it
RESHAPED = {aten.resize_, aten.set_, aten.squeeze_, aten.unsqueeze_, aten.transpose_, aten.t_}
CARRY = (
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.detach,
    aten._to_copy,
    aten.clone,
    aten.alias,
)


def _move(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` for parameters without values, which torch's own swaps with themselves."""
    for child in module.children() if recurse else ():
        _move(child, change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        gradient, parameter.grad = parameter.grad, None
        with torch.no_grad():
            changed = change(parameter)
        if changed is not parameter:
            fresh = nn.Parameter(changed, requires_grad=parameter.requires_grad)
            del changed
            try:
                torch.utils.swap_tensors(parameter, fresh)
            except RuntimeError:  # somebody else holds it too
                module._parameters[name] = fresh
        if gradient is not None:
            module._parameters[name].grad = change(gradient)  # type: ignore[union-attr]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernels that CUDA takes: flash attention, or memory-efficient attention with a mask.

    Torch knows none for a device that is pretended, and would form all products of its own.
    """
    if query.device.type == "cpu":
        return ATTENTION(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is None:
        flash = aten._scaled_dot_product_flash_attention
        output: Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return output
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
    bias = attn_mask if attn_mask.dtype is query.dtype else attn_mask.to(query.dtype)
    bias = bias.expand(*query.shape[:-1], key.shape[-2])
    efficient = aten._scaled_dot_product_efficient_attention
    mixed: Tensor = efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
    return mixed


def _kth_lowest(score: Tensor, count: int) -> Tensor:
    """The threshold, which remembers what share of the scores lies at or below it."""
    threshold = KTH_LOWEST(score, count)
    setattr(threshold, ANSWER, count / score.shape[1])
    return threshold


KTH_LOWEST = selection.kth_lowest
ATTENTION = functional.scaled_dot_product_attention


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, whose results count too."""
    if func.namespace != "aten" or func.overloadpacket in ANSWERS:
        return False
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)
    return has


@cache
def _only_writes(func: Any) -> bool:
    """Whether an operator writes into one tensor, of the same shape, and returns it or nothing."""
    schema = func._schema
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    returned = [r.alias_info is not None and r.alias_info.is_write for r in schema.returns]
    return len(written) == 1 and returned in ([], [True]) and func.overloadpacket not in RESHAPED


def _elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type != "cpu"


def _tensors_written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator writes into."""
    written: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return written


def _return(func: Any, written: list[Tensor]) -> Any:
    count = len(func._schema.returns)
    return None if count == 0 else written[0] if count == 1 else tuple(written[:count])


def _number(mode: DryTensors, tensor: Tensor) -> Any:
    answer = getattr(tensor, ANSWER, None)
    if answer is None and isinstance(tensor, FakeTensor) and tensor.constant is not None:
        with unset_fake_temporarily():
            return tensor.constant.item()
    if tensor.dtype is torch.bool:
        return True if answer is None else bool(answer)
    if tensor.dtype.is_floating_point:
        return 1.0 if answer is None else float(answer)
    return 1 if answer is None else int(answer)


def _nonzero(mode: DryTensors, tensor: Tensor) -> Tensor:
    return tensor.new_empty((mode.count_chosen(tensor), tensor.ndim), dtype=torch.int64)


def _masked_select(mode: DryTensors, tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.new_empty(mode.count_chosen(mask))


def _by_mask(indices: Any) -> Tensor | None:
    masks = [i for i in indices if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
    return masks[0] if masks else None


def _index(mode: DryTensors, tensor: Tensor, indices: Any) -> Any:
    mask = _by_mask(indices)
    if mask is None:
        return aten.index.Tensor(tensor, indices)
    place = next(i for i, index in enumerate(indices) if index is mask)
    rest = tensor.shape[place + mask.ndim :]
    # the kernel lists the places first
    mode.ledger.scratch(tensor.device.type, 8 * mask.ndim * mode.count_chosen(mask))
    return tensor.new_empty((*tensor.shape[:place], mode.count_chosen(mask), *rest))


def _index_put_(mode: DryTensors, tensor: Tensor, indices: Any, *others: Any, **named: Any) -> Any:
    return tensor


def _index_put(mode: DryTensors, tensor: Tensor, indices: Any, *others: Any, **named: Any) -> Any:
    return tensor.clone()


def _unique(mode: DryTensors, tensor: Tensor, *others: Any, **named: Any) -> Any:
    return (
        tensor.new_empty(tensor.numel()),
        tensor.new_empty(tensor.shape, dtype=torch.int64),
        tensor.new_empty(tensor.numel(), dtype=torch.int64),
    )


def _bincount(mode: DryTensors, tensor: Tensor, weights: Any = None, minlength: int = 0) -> Tensor:
    return tensor.new_empty(max(1, minlength), dtype=torch.int64)


def _sparse(
    mode: DryTensors, starts: Tensor, columns: Tensor, values: Tensor, *rest: Any, **_: Any
) -> Any:
    """A strided matrix of one element in place of a sparse one, which holds the parts of that."""
    stand_in = values.new_empty(()).expand(rest[0])
    setattr(stand_in, VALUES, (starts, columns, values))
    return stand_in


def _sample_products(mode: DryTensors, pattern: Tensor, *others: Any, **named: Any) -> Tensor:
    starts, columns, values = getattr(pattern, VALUES)
    products = torch.empty_like(values)
    mode.ledger.note(products)
    return _sparse(mode, starts, columns, products, pattern.shape)


ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.sparse_compressed_tensor: _sparse,
    aten.sparse_sampled_addmm: _sample_products,
    aten.values: lambda mode, matrix: getattr(matrix, VALUES)[2],
    aten.item: lambda mode, tensor: _number(mode, tensor),
    aten._local_scalar_dense: _number,
    aten.is_nonzero: lambda mode, tensor: bool(_number(mode, tensor)),
    aten.equal: lambda mode, left, right: True,
    aten.nonzero: _nonzero,
    aten.masked_select: _masked_select,
    aten.index: _index,
    aten.index_put_: _index_put_,
    aten._index_put_impl_: _index_put_,
    aten.index_put: _index_put,
    aten._unique2: _unique,
    aten.bincount: _bincount,
}

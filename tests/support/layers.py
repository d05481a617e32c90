"""Single sparse linears and what one call of them costs, for the tests of the adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sparsemend.sparse.linear import SparseLinear

UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
# fp64 sums of fewer than a hundred terms of order one, a hundred roundings each
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sparse_linear(
    outputs: int,
    inputs: int,
    *,
    density: float = 0.5,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    seed: int = 0,
) -> SparseLinear:
    """A frozen random linear whose kept weights are not zero."""
    weight = random(outputs, inputs, seed=seed).div(inputs**0.5).to(dtype)
    keep = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed + 1)) < density
    assert (weight != 0).all()
    added = nn.Parameter(random(outputs, seed=seed + 2, dtype=dtype), False) if bias else None
    return SparseLinear(nn.Parameter(weight, False), added, keep)


def bound(roundings: int, dtype: torch.dtype) -> float:
    """Relative error of a value that was rounded so often to `dtype` on its way."""
    return (1 + UNIT[dtype]) ** roundings - 1


def assert_within(got: Tensor, exact: Tensor, magnitude: Tensor, *, roundings: int) -> None:
    """Every entry differs by no more than so many bf16 roundings of the sum of magnitudes."""
    # products accumulate in fp32: a hundred additions, far below one bf16 rounding
    allowed = (bound(roundings, torch.bfloat16) + 100 * UNIT[torch.float32]) * magnitude
    assert ((got.double() - exact.double()).abs() <= allowed.double()).all()


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """What a forward pass of x keeps for the backward pass beyond x and the layer's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return sum(storage.nbytes() for storage in kept.values())


def flops(run: Callable[[], Any]) -> int:
    # the counter knows addmm but not its in-place form
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm}) as counter:
        run()
    return counter.get_total_flops()


def _addmm(total: Any, left: Any, right: Any, **_: Any) -> int:
    return int(2 * left[0] * left[1] * right[1])


class Watch(TorchDispatchMode):
    """Records (operator, inputs' shapes, result) of everything that makes a tensor of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.made: list[tuple[str, list[tuple[int, ...]], Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and tuple(result.shape) == self.shape:
            given = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
            self.made.append((func.overloadpacket.__name__, given, result))
        return result

    def storages(self, *, floating: bool, besides: Tensor) -> int:
        """How many memories of that shape, floating point or not, were made; views of one apart."""
        chosen = [r for _, _, r in self.made if r.is_floating_point() == floating]
        made = {r.untyped_storage().data_ptr() for r in chosen}
        return len(made - {besides.untyped_storage().data_ptr()})

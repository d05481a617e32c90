"""Check on one window that visiting the blocks one by one is what the model does, before all else.

One forward of the whole model notes what every block is given; one walk must give every block the
same.  It fails for families whose forward does more between its blocks than hand hidden states on,
calls a block twice or out of order, or leaves one out.  The same forward shows the linears that the
model never calls, because it reads their weights alone (dt_proj of Mamba) or never gets there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.blocks.calls import split_call
from sparsemend.blocks.find import NEVER_CALLED, find_blocks, linears_of
from sparsemend.blocks.hooks import keep_hooks
from sparsemend.blocks.residency import Residency, home_of, outside_on, residency_of, streams
from sparsemend.blocks.walk import Calibration

# ||walk - model|| / ||model|| of the states.  The walk repeats the model's own operations, so that
# 0 is expected; a kernel that adds in no fixed order changes fewer bits than one rounding of every
# value, which the 16-bit limits allow (bf16 rounds by up to 2^-8, fp16 by 2^-11).
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}


@torch.no_grad()
def check_walk(
    model: nn.Module, window: Tensor, *, device: torch.device | None = None, offload: bool = False
) -> None:
    """Raise ValueError where a walk over the blocks is not the model's forward.

    Marks the linears that are never called, see `find.is_never_called`.  window: tokens (1, T);
    device, offload: those of the `Calibration` to come.  Costs a forward and a walk.
    """
    family, (prefix, blocks) = type(model).__name__, find_blocks(model)
    calibration = Calibration((window,), device=device, offload=offload)
    seen = _run(model, blocks, calibration)
    _check_order(family, prefix, seen.order, len(blocks))
    _mark_never_called(blocks, seen.called)
    reached = "its first block"
    try:
        for visit in calibration.walk(model):
            reached = visit.name
            theirs = seen.inputs.pop(visit.index)
            _compare(family, f"the input of {visit.name}", visit.inputs[0], theirs)
            if visit.index + 1 == visit.count:
                last = visit.outputs()[0]
                _compare(family, f"the output of {visit.name}", last, seen.output)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # the forward above went through the same code with what the model itself hands on
        raise ValueError(
            f"{family} hands its blocks more than hidden states: {reached} fails when visited by "
            f"itself ({type(error).__name__}: {error}); such models are not supported"
        ) from error


@dataclass
class _Seen:
    """What one forward showed: blocks in the order of their calls, their inputs, called linears."""

    order: list[int] = field(default_factory=list)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    output: Tensor | None = None
    called: set[int] = field(default_factory=set)  # ids


def _run(model: nn.Module, blocks: nn.ModuleList, calibration: Calibration) -> _Seen:
    """One forward of the model on the calibration's window, its blocks where a walk has them."""
    seen = _Seen()
    elsewhere, residency = calibration.offload or streams(model), residency_of(model)
    home = home_of(model)
    device = calibration.device or home
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.enter_context(_watching(block, index, seen))
            if elsewhere:
                stack.enter_context(_visiting(residency, block, index, device))
        stack.enter_context(outside_on(model, device, home))
        model(input_ids=calibration.windows.to(device), use_cache=False)
    return seen


@contextmanager
def _watching(block: nn.Module, index: int, seen: _Seen) -> Iterator[None]:
    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.order.append(index)
        seen.inputs[index] = split_call(inputs, named)[0].clone()

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.output = (output if isinstance(output, Tensor) else output[0]).clone()

    def call(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.called.add(id(module))

    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.register_forward_hook(after),
        *(linear.register_forward_pre_hook(call) for linear in linears_of(block).values()),
    ]
    with keep_hooks(handles):
        yield


@contextmanager
def _visiting(
    residency: Residency, block: nn.Module, index: int, device: torch.device
) -> Iterator[None]:
    """Bring the block to the device of all the rest for each of its calls."""
    calls = ExitStack()

    def bring(module: nn.Module, inputs: Any) -> None:
        calls.enter_context(residency.resident(index, device, offload=True))

    def back(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.close()

    handles = [block.register_forward_pre_hook(bring), block.register_forward_hook(back)]
    with calls, keep_hooks(handles):
        yield


def _check_order(family: str, prefix: str, order: Sequence[int], count: int) -> None:
    """Raise ValueError unless the blocks were called once each, in the order of their list."""
    if list(order) == list(range(count)):
        return
    fact = "calls its blocks in another order than that of their list"
    for index in range(count):
        if order.count(index) != 1:
            fact = f"calls {prefix}.{index} {order.count(index)} times in a forward"
            break
    raise ValueError(
        f"{family} {fact}; blocks are visited once each, in their order, so such models are not "
        "supported"
    )


def _mark_never_called(blocks: nn.ModuleList, called: set[int]) -> None:
    """Mark the linears of which no namesake in the block was called.

    An expert that no token of this window chose has a namesake that some did.
    """
    for block in blocks:
        linears = linears_of(block)
        alive = {_without_numbers(name) for name, m in linears.items() if id(m) in called}
        for name, linear in linears.items():
            vars(linear).pop(NEVER_CALLED, None)
            if _without_numbers(name) not in alive:
                setattr(linear, NEVER_CALLED, True)


def _without_numbers(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _compare(family: str, what: str, walked: Tensor, theirs: Tensor | None) -> None:
    """Raise ValueError where the walk's states are not the model's own, within TOLERANCES."""
    assert theirs is not None  # the order of the calls is right
    alike = walked.shape == theirs.shape and walked.dtype == theirs.dtype
    deviation = relative_deviation(walked, theirs) if alike else float("inf")
    limit = TOLERANCES.get(theirs.dtype, TOLERANCES[torch.float32])
    if deviation <= limit:
        return
    fact = f"deviates by {deviation:.2g}, more than {limit:.2g}, in {theirs.dtype}"
    if not alike:
        here, there = (f"{tuple(state.shape)} {state.dtype}" for state in (walked, theirs))
        fact = f"is {here} instead of {there}"
    raise ValueError(
        f"visiting the blocks of {family} one by one does not give what its forward gives: {what} "
        f"{fact}; its forward does more than hand hidden states from block to block, so such "
        "models are not supported"
    )


def relative_deviation(walked: Tensor, theirs: Tensor) -> float:
    """||walked - theirs|| / ||theirs||, in fp64; what is not finite in both is equal."""
    if torch.equal(walked, theirs.to(walked.device)):
        return 0.0
    ours, theirs = (t.cpu().double().nan_to_num() for t in (walked, theirs))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=torch.finfo(theirs.dtype).tiny))

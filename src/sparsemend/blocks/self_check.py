"""Check on one window that visiting the blocks one by one is what the model does, before all else.

One forward of the whole model, with a walk beside it, which must give every block the same.  It
fails for families whose forward does more between its blocks than hand hidden states on,
calls a block twice or out of order, or leaves one out.  The same forward shows the linears that the
model never calls, because it reads their weights alone (dt_proj of Mamba) or never gets there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.blocks.calls import split_call
from sparsemend.blocks.find import NEVER_CALLED, find_blocks, linears_of
from sparsemend.blocks.hooks import keep_hooks
from sparsemend.blocks.residency import Residency, home_of, outside_on, residency_of, streams
from sparsemend.blocks.walk import Calibration, Visit
from sparsemend.errors import (
    brief,
    lacks_determinism,
    lacks_disk,
    lacks_memory,
    lacks_operator,
    raised_here,
)

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
    check = _SideBySide(family, blocks, calibration.walk(model))
    try:
        check.run(model, calibration)
    except _Refused:
        raise
    except Exception as error:
        check.visits.close()
        # what is at fault shows in a forward alone, which goes through the same code with what the
        # model itself hands on
        with _blaming(family, next(model.parameters()).dtype):
            order = _order(model, blocks, calibration)
        _check_order(family, prefix, order, len(blocks))
        if not isinstance(error, AttributeError | IndexError | KeyError | TypeError):
            raise
        raise ValueError(
            f"{family} hands its blocks more than hidden states: {check.reached} fails when "
            f"visited by itself ({type(error).__name__}: {error}); such models are not supported"
        ) from error
    finally:
        check.visits.close()
    _mark_never_called(blocks, check.called)


@contextmanager
def _blaming(family: str, dtype: torch.dtype) -> Iterator[None]:
    """Say in one line that a model fails in a forward of its own, of which nothing is ours."""
    try:
        yield
    except Exception as error:
        elsewhere = (lacks_memory, lacks_disk, lacks_operator, lacks_determinism, raised_here)
        if any(says(error) for says in elsewhere):
            raise
        number = str(dtype).removeprefix("torch.")
        remedy = "see whether this version of transformers runs it at all"
        if dtype != torch.float32:
            remedy = f"set model.dtype=float32, or {remedy}"
        raise _Refused(
            f"{family} fails in a forward of its own in {number} ({brief(error)}); {remedy}"
        ) from error


class _Refused(ValueError):
    """Says why a model is not supported."""


class _OutOfOrder(Exception):
    """A block is called where another is due."""


class _SideBySide:
    """One forward of the model, beside a walk that is a block behind it.

    A block is brought in once, for both, and no states of an earlier block are kept.  visits: of
    the walk.  called: ids of the linears that the forward called.  reached: the last visited block.
    """

    def __init__(
        self, family: str, blocks: nn.ModuleList, visits: Generator[Visit, None, None]
    ) -> None:
        self.family, self.blocks, self.visits = family, blocks, visits
        self.called: set[int] = set()
        self.reached = "its first block"
        self._due = 0  # the block that the forward is to call next
        self._visit: Visit | None = None
        self._walking = False

    def run(self, model: nn.Module, calibration: Calibration) -> None:
        home = home_of(model)
        device = calibration.device or home
        self._go_on()  # which brings the first block in, from where the model is
        with ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                stack.enter_context(self._watching(block, index))
            stack.enter_context(outside_on(model, device, home))
            model(input_ids=calibration.windows.to(device), use_cache=False)
        if self._due < len(self.blocks):
            raise _OutOfOrder

    def _go_on(self) -> Visit:
        """The visit of the next block, with its inputs from the walk through the one before."""
        self._walking = True
        try:
            self._visit = next(self.visits)
        finally:
            self._walking = False
        self.reached = self._visit.name
        return self._visit

    @contextmanager
    def _watching(self, block: nn.Module, index: int) -> Iterator[None]:
        def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self._walking:
                return
            if index != self._due:
                raise _OutOfOrder
            self._due += 1
            visit = self._visit if index == 0 else self._go_on()
            assert visit is not None
            theirs = split_call(inputs, named)[0]
            _compare(self.family, f"the input of {visit.name}", visit.inputs[0], theirs)

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._walking or index + 1 < len(self.blocks):
                return
            assert self._visit is not None
            self._walking = True
            last = self._visit.output(0)
            self._walking = False
            theirs = output if isinstance(output, Tensor) else output[0]
            _compare(self.family, f"the output of {self.reached}", last, theirs)

        def call(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not self._walking:
                self.called.add(id(module))

        handles = [
            block.register_forward_pre_hook(before, with_kwargs=True),
            block.register_forward_hook(after),
            *(linear.register_forward_pre_hook(call) for linear in linears_of(block).values()),
        ]
        with keep_hooks(handles):
            yield


def _order(model: nn.Module, blocks: nn.ModuleList, calibration: Calibration) -> list[int]:
    """The blocks in the order in which a forward calls them, each there for its calls alone."""
    elsewhere, residency = calibration.offload or streams(model), residency_of(model)
    order: list[int] = []
    home = home_of(model)
    device = calibration.device or home
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            note = block.register_forward_pre_hook(lambda *_, index=index: order.append(index))
            stack.enter_context(keep_hooks([note]))
            if elsewhere:
                stack.enter_context(_visiting(residency, block, index, device))
        stack.enter_context(outside_on(model, device, home))
        model(input_ids=calibration.windows.to(device), use_cache=False)
    return order


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
    raise _Refused(
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


def _compare(family: str, what: str, walked: Tensor, theirs: Tensor) -> None:
    """Raise ValueError where the walk's states are not the model's own, within TOLERANCES."""
    alike = walked.shape == theirs.shape and walked.dtype == theirs.dtype
    deviation = relative_deviation(walked, theirs) if alike else float("inf")
    limit = TOLERANCES.get(theirs.dtype, TOLERANCES[torch.float32])
    if deviation <= limit:
        return
    fact = f"deviates by {deviation:.2g}, more than {limit:.2g}, in {theirs.dtype}"
    if not alike:
        here, there = (f"{tuple(state.shape)} {state.dtype}" for state in (walked, theirs))
        fact = f"is {here} instead of {there}"
    raise _Refused(
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

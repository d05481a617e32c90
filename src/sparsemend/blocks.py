"""The model-agnostic block loop: find the decoder blocks, visit them one by one.

`walk` yields a Visit per block; what the loop body does to the block is what the next block's
inputs are computed with, so every block-wise algorithm is an ordinary `for` loop.  Each block's
keyword arguments are recorded for that block (Gemma2 hands its blocks different masks); the
hidden states are recorded at the first block only and then updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsemend.statistics import Statistic, StatisticFactory


class _Stop(Exception):
    """Ends a forward once what was wanted of it is known."""


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder blocks: the ModuleList with the most parameters.

    Raises ValueError when the model has no such list.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks (nn.ModuleList)")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
    """Every nn.Linear inside one block, by its name relative to the block, in module order."""
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


def prunable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every nn.Linear inside a decoder block, by full name (embeddings and head are outside)."""
    prefix, blocks = find_blocks(model)
    return {
        f"{prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks)
        for name, linear in linears_of(block).items()
    }


def block_index(name: str, prefix: str) -> int:
    """Which block a full linear name lies in; `prefix` is the name of the block list."""
    return int(name[len(prefix) + 1 :].split(".")[0])


def check_prunable(model: nn.Module) -> None:
    """Raise ValueError where blocks hold no nn.Linear, or fused 3-D expert weights."""
    _, blocks = find_blocks(model)
    for block in blocks:
        fused = [
            name
            for module in block.modules()
            if not isinstance(module, nn.Conv1d | nn.Conv2d)
            for name, p in module.named_parameters(recurse=False)
            if p.ndim > 2
        ]
        if fused:
            raise ValueError(
                f"{type(model).__name__} holds fused {fused[0]} (mixture of experts), which is no "
                "nn.Linear; such models are not supported"
            )
    if not any(linears_of(block) for block in blocks):
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear inside its blocks; there is nothing to prune"
        )


@dataclass
class Visit:
    """One block, its inputs, and what may be asked of them."""

    index: int
    count: int
    name: str
    block: nn.Module
    _states: list[Tensor]
    _arguments: dict[int, _Arguments]
    _device: torch.device
    linears: dict[str, nn.Linear] = field(init=False)

    def __post_init__(self) -> None:
        self.linears = linears_of(self.block)

    def full_name(self, linear: str) -> str:
        """Name of one of this block's linears as seen from the model."""
        return f"{self.name}.{linear}"

    def replace(self, name: str, linear: nn.Linear) -> None:
        """Put `linear` in the place of the block's linear `name`."""
        self.block.set_submodule(name, linear)
        self.linears[name] = linear

    @torch.no_grad()
    def observe(self, factory: StatisticFactory) -> dict[str, Statistic]:
        """One pass over the calibration batches; a statistic per linear, fed by hooks.

        Linears that are handed the very same input tensor share one statistic object.
        """
        observer = _Observer(self.linears, factory)
        with observer.hooked():
            for state in self._states:
                observer.start_batch(state)
                try:
                    self.forward(state)
                except _Stop:
                    continue
        return observer.statistics()

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """The block's outputs (B, T, D), one per batch, with the block as it is now."""
        return [self.forward(state).to(state.device) for state in self._states]

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The block's inputs (B, T, D), one per batch."""
        return self._states

    @torch.no_grad()
    def advance_(self) -> None:
        """Replace every input by the block's output, in place."""
        for state in self._states:
            state.copy_(self.forward(state))

    def forward(self, state: Tensor) -> Tensor:
        """The block's output (B, T, D) for one batch of inputs, gradients as the caller set."""
        arguments = self._arguments[state.shape[0]]
        output = self.block(state.to(self._device), *arguments.positional, **arguments.keyword)
        return output if isinstance(output, Tensor) else output[0]


def walk(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    device: torch.device | None = None,
    offload: bool = False,
    recorded: Recorded | None = None,
) -> Iterator[Visit]:
    """Visit the blocks in order with propagated activations.

    batches: token batches (B, T), all of one T.  With `offload` only the visited block lives on
    `device`; otherwise the model is expected there.  Hidden states stay on `device`.
    recorded: what `record` gave for this model and these batches; left as it was.
    """
    prefix, blocks = find_blocks(model)
    home = next(model.parameters()).device
    device = device or home
    states, arguments = recorded or _record(model, blocks, batches)
    states = [state.to(device, copy=recorded is not None) for state in states]
    for index, block in enumerate(blocks):
        if offload:
            block.to(device)
        visit = Visit(
            index=index,
            count=len(blocks),
            name=f"{prefix}.{index}",
            block=block,
            _states=states,
            _arguments={size: call.on(device) for size, call in arguments[index].items()},
            _device=device,
        )
        try:
            yield visit
            if index + 1 < len(blocks):
                visit.advance_()
        finally:
            if offload:
                block.to(home)


def record(model: nn.Module, batches: Sequence[Tensor]) -> Recorded:
    """What `walk` reads of the batches before the first block; nothing of it depends on a mask."""
    _, blocks = find_blocks(model)
    return _record(model, blocks, batches)


@dataclass(frozen=True)
class _Arguments:
    """What a block is called with besides its hidden states."""

    positional: tuple[Any, ...]
    keyword: dict[str, Any]

    def on(self, device: torch.device) -> _Arguments:
        return _Arguments(
            tuple(_moved(value, device) for value in self.positional),
            {key: _moved(value, device) for key, value in self.keyword.items()},
        )


# hidden states (B, T, D) per batch, and per block its arguments per batch size
Recorded = tuple[list[Tensor], list[dict[int, _Arguments]]]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


@torch.no_grad()
def _record(model: nn.Module, blocks: nn.ModuleList, batches: Sequence[Tensor]) -> Recorded:
    """First block's hidden states per batch, and every block's arguments per batch size.

    Arguments come from one forward per batch size, in which each block only notes what it is
    called with and hands its input on.
    """
    home = next(model.parameters()).device
    states = []
    arguments: list[dict[int, _Arguments]] = [{} for _ in blocks]
    for number, batch in enumerate(batches):
        tokens = batch.to(home)
        size = tokens.shape[0]
        # the second batch is recorded whole as well, to see that tokens do not change the arguments
        whole = size not in arguments[0] or number == 1
        state, *called = _first_call(model, blocks, tokens, whole=whole)
        states.append(state.clone())
        for index, call in enumerate(called):
            earlier = arguments[index].setdefault(size, call)
            if not _same(earlier.positional, call.positional) or not _same(
                earlier.keyword, call.keyword
            ):
                raise ValueError(
                    f"block {index} of {type(model).__name__} is given arguments that depend on "
                    "the tokens; a block-wise walk cannot propagate them, so this family is not "
                    "supported"
                )
    return states, arguments


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments of a block hold equal tensors; other values need the same type."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other)


def _first_call(
    model: nn.Module, blocks: nn.ModuleList, tokens: Tensor, *, whole: bool
) -> list[Any]:
    """[hidden states, arguments of block 0, of block 1, ...]; only the first unless `whole`."""
    found: list[Any] = []
    last = len(blocks) - 1

    def note(index: int) -> Callable[..., Any]:
        def call(*positional: Any, **keyword: Any) -> Any:
            hidden, rest, named = _split(positional, keyword)
            if index == 0:
                found.append(hidden)
                if not whole:
                    raise _Stop
            found.append(_Arguments(rest, named))
            if index == last:
                raise _Stop
            return (hidden,) if returns_tuple else hidden

        return call

    returns_tuple = _returns_tuple(model, blocks[0], tokens) if whole else False
    notes = [(block, note(index)) for index, block in enumerate(blocks)]
    with _forwards_replaced(notes), suppress(_Stop):
        model(input_ids=tokens, use_cache=False)
    return found


def _split(
    positional: tuple[Any, ...], keyword: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if positional:
        return positional[0], positional[1:], dict(keyword)
    rest = dict(keyword)
    return rest.pop("hidden_states"), (), rest


def _returns_tuple(model: nn.Module, block: nn.Module, tokens: Tensor) -> bool:
    """Whether this family's blocks return a tuple (older ones) or the bare hidden states."""
    kinds: list[bool] = []

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        kinds.append(isinstance(output, tuple))
        raise _Stop

    handle = block.register_forward_hook(look)
    try:
        model(input_ids=tokens[:1], use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    return kinds[0]


@contextmanager
def _forwards_replaced(pairs: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    for module, call in pairs:
        module.forward = call
    try:
        yield
    finally:
        for module, _ in pairs:
            del module.forward  # the class's own forward shows again


class _Observer:
    """Feeds one statistic per distinct input tensor; ends a forward after its last linear."""

    def __init__(self, linears: dict[str, nn.Linear], factory: StatisticFactory) -> None:
        self._linears = linears
        self._factory = factory
        self._own: dict[str, Statistic] = {}
        self._leader: dict[str, str] = {}
        self._inputs: list[tuple[Tensor, str]] = []
        self._calls: list[str] = []
        self._expected: list[str] | None = None
        self._batch = torch.Size()

    def start_batch(self, state: Tensor) -> None:
        self._batch = state.shape[:2]
        if self._expected is None and self._calls:
            self._expected = self._calls
        self._calls, self._inputs = [], []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for name, linear in self._linears.items():
                handles.append(linear.register_forward_pre_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def statistics(self) -> dict[str, Statistic]:
        """Per linear; one that was never called (an expert no token chose) has a fresh one."""
        for name, linear in self._linears.items():
            if name not in self._leader:
                self._own[name] = self._factory(linear.in_features, linear.weight.device)
                self._leader[name] = name
        return {name: self._own[self._leader[name]] for name in self._linears}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._see(name, arguments[0])
            self._calls.append(name)
            once_each = len(self._calls) == len(self._linears) == len(set(self._calls))
            if once_each and self._calls == self._expected:
                raise _Stop  # the last linear's product and what follows are not needed

        return hook

    def _see(self, name: str, inputs: Tensor) -> None:
        leader = next((n for tensor, n in self._inputs if tensor is inputs), None)
        if leader is None:
            self._inputs.append((inputs, name))
            leader = name
        if self._leader.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shares its input with another linear only in some batches")
        if leader == name:
            if name not in self._own:
                linear = self._linears[name]
                self._own[name] = self._factory(linear.in_features, linear.weight.device)
            # OPT flattens (B, T, I) to (B T, I) before its MLP; statistics are per sequence
            flat = inputs.ndim == 2 and len(inputs) == self._batch.numel()
            self._own[name].update(inputs.unflatten(0, self._batch) if flat else inputs)

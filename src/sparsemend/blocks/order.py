"""The order in which a block calls its linears, as groups that are pruned one after the other.

Linears that are handed the very same input tensor form a group: query, key and value; the output
projection; gate and up; down.  Linears whose names differ in numbers alone, the experts of a
mixture, join the group of the first, since none of them reads another; the parts of an
nn.Sequential, which do, stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparsemend.blocks.hooks import keep_hooks


class CallOrder:
    """Notes which linears of a block are called, in order, and which of them share an input."""

    def __init__(self, block: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        self._block, self._linears = block, linears
        self._leader: dict[str, str] = {}
        self._inputs: list[tuple[Tensor, str]] = []

    @property
    def complete(self) -> bool:
        """Whether every linear was called."""
        return len(self._leader) == len(self._linears)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep hooks on inside, for one forward of the block."""
        linears = self._linears.items()
        try:
            with keep_hooks(m.register_forward_pre_hook(self._hook(name)) for name, m in linears):
                yield
        finally:
            self._inputs = []

    def groups(self) -> list[list[str]]:
        """The linears by group, in the order of first calls; what was never called comes last."""
        groups: dict[str, list[str]] = {}
        for name, leader in self._leader.items():
            groups.setdefault(_kind(self._block, leader), []).append(name)
        never = [name for name in self._linears if name not in self._leader]
        return [*groups.values(), *([never] if never else [])]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            leader = next((n for tensor, n in self._inputs if tensor is arguments[0]), name)
            self._inputs.append((arguments[0], leader))
            self._leader.setdefault(name, leader)

        return hook


def _kind(block: nn.Module, name: str) -> str:
    """The name of a linear with `*` for its numbers, but for those inside an nn.Sequential."""
    parts = name.split(".")
    parents = [".".join(parts[:depth]) for depth in range(len(parts))]
    return ".".join(
        "*"
        if part.isdigit() and not isinstance(block.get_submodule(parent), nn.Sequential)
        else part
        for parent, part in zip(parents, parts, strict=True)
    )

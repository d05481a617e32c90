"""Hooks on the linears of one block that feed statistics of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.blocks.calls import StopForward
from sparsemend.blocks.hooks import keep_hooks
from sparsemend.blocks.statistics import Statistic, StatisticFactory


class InputObserver:
    """Feeds one statistic per distinct input tensor; ends a forward after its last linear."""

    def __init__(self, linears: dict[str, nn.Linear], factory: StatisticFactory) -> None:
        self._linears = linears
        self._factory = factory
        self._by_leader: dict[str, Statistic] = {}
        self._leader: dict[str, str] = {}
        self._reached: dict[str, Tensor] = {}  # by leader, bool: any input that is not zero
        self._inputs: list[tuple[Tensor, str]] = []
        self._calls: list[str] = []
        self._expected: list[str] | None = None
        self._batch = torch.Size()

    def start_batch(self, shape: torch.Size) -> None:
        """Prepare for the next forward of the block, on tokens of `shape` (B, T)."""
        self._batch = shape
        if self._expected is None and self._calls:
            self._expected = self._calls
        self._calls, self._inputs = [], []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep hooks on inside; a forward may end in StopForward once all linears were called."""
        linears = self._linears.items()
        with keep_hooks(m.register_forward_pre_hook(self._hook(name)) for name, m in linears):
            yield

    def statistics(self) -> dict[str, Statistic]:
        """Statistic by linear, without those that no token reached.

        They are an expert that no token chose, a linear whose weight alone is read, and one that
        was handed zeros alone, from which no weight can be told from another.
        """
        reached = {leader for leader, any_input in self._reached.items() if any_input}
        leaders = {n: self._leader[n] for n in self._linears if self._leader.get(n) in reached}
        return {name: self._by_leader[leader] for name, leader in leaders.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._see(name, arguments[0])
            self._calls.append(name)
            once_each = len(self._calls) == len(self._linears) == len(set(self._calls))
            if once_each and self._calls == self._expected:
                raise StopForward  # the last linear's product and what follows are not needed

        return hook

    def _see(self, name: str, inputs: Tensor) -> None:
        if not inputs.numel():
            return  # an expert is called with the tokens that chose it: none
        leader = next((n for tensor, n in self._inputs if tensor is inputs), None)
        if leader is None:
            self._inputs.append((inputs, name))
            leader = name
        if self._leader.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shares its input with another linear only in some batches")
        if leader == name:
            seen = self._reached.get(name)
            self._reached[name] = inputs.any() if seen is None else seen | inputs.any()
            if name not in self._by_leader:
                linear = self._linears[name]
                self._by_leader[name] = self._factory(linear.in_features, linear.weight.device)
            # OPT flattens (B, T, I) to (B T, I) before its MLP; statistics are per sequence
            flat = inputs.ndim == 2 and len(inputs) == self._batch.numel()
            self._by_leader[name].update(inputs.unflatten(0, self._batch) if flat else inputs)

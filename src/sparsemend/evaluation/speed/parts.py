"""Where the time of decoding goes: into the linears, the head, and all the rest.

The rest is attention, norms, embeddings, Python and what the hooks take that tell the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class DecodeParts:
    """Seconds of one decoding on a CPU, by what took them."""

    linears: float
    head: float
    rest: float

    def line(self) -> str:
        """The shares of the whole."""
        whole = self.linears + self.head + self.rest
        return (
            f"of decode: linears {self.linears / whole:.0%}, head {self.head / whole:.0%}, "
            f"rest {self.rest / whole:.0%}"
        )


def seconds_of_parts(
    work: Callable[[], object],
    linears: Iterable[nn.Module],
    head: nn.Module | None,
    now: Callable[[], float],
) -> DecodeParts:
    """What a call of `work` takes in these modules, whose forwards hold none of each other.

    now: the clock, in seconds.
    """
    heads = [] if head is None else [head]
    with _watch(linears, now) as in_linears, _watch(heads, now) as in_head:
        started = now()
        work()
        whole = now() - started
    inside, at_end = sum(in_linears), sum(in_head)
    return DecodeParts(inside, at_end, whole - inside - at_end)


@contextmanager
def _watch(modules: Iterable[nn.Module], now: Callable[[], float]) -> Iterator[list[float]]:
    """The seconds of every forward of these modules, until the block ends."""
    seconds: list[float] = []
    started = [0.0]

    def begin(module: nn.Module, inputs: object) -> None:
        started[0] = now()

    def end(module: nn.Module, inputs: object, output: object) -> None:
        seconds.append(now() - started[0])

    handles = []
    for module in modules:
        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()

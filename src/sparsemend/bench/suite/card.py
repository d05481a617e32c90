"""Products with one linear on a card, and how their time is taken there.

A product of microseconds is over before Python has launched the next, so all calls of a row are
captured once as a CUDA graph, and its replays are timed by the card's own events.  Not measured: no
card was at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsemend.engine.library import Factor
from sparsemend.engine.on_cuda import multiplied_by_triton, multiply_on_cuda
from sparsemend.engine.packed import VALUES, pack_weight, unpack_weight
from sparsemend.engine.two_four import compress_two_four, multiply_two_four, stored_parts
from sparsemend.sparse.selection import rank_in_group

REPLAYS = 10  # of the graph between two events, so that their own time is little


@dataclass(frozen=True)
class CardCall:
    """A call of a row, the bytes of its weight, and what it must give: None for no product."""

    label: str
    work: Callable[[], object]
    nbytes: int
    expected: Tensor | None


def calls_on_card(x: Tensor, weight: Tensor, device: torch.device, read: str) -> Iterator[CardCall]:
    """The rows of x (T, I) and a bfloat16 weight (O, I) on the CPU, moved to a card.

    read: the label of the row that reads the weight and does nothing more.  A row that cannot be
    had raises ValueError when it is called.
    """
    x, dense = x.to(device), weight.to(device)
    wide, wide_x = dense.float(), x.float()
    expected = wide_x @ wide.T
    yield CardCall("torch bfloat16", partial(F.linear, x, dense), dense.nbytes, expected)
    yield CardCall("torch float32", partial(F.linear, wide_x, wide), wide.nbytes, expected)
    yield CardCall(read, dense.sum, dense.nbytes, None)
    yield two_four_call(x, dense)
    for values in VALUES:
        label = f"packed {values}"
        if not multiplied_by_triton(device):
            reason = f"no Triton kernel multiplies on {device}, as a warning said"
            yield CardCall(label, partial(refuse, reason), 0, None)
            continue
        packed = pack_weight(weight, keep=None, values=values)
        product = wide_x @ unpack_weight(packed).to(device).float().T
        parts = (packed.mask, packed.values, packed.offsets, packed.scale)
        moved = [None if part is None else part.to(device) for part in parts]
        assert moved[1] is not None
        factor = Factor(moved[0], moved[1], moved[2], moved[3], None, len(weight))
        tokens = wide_x if values == "float32" else x
        work = partial(multiply_on_cuda, tokens, factor)
        yield CardCall(label, work, packed.nbytes, product)


def two_four_call(x: Tensor, dense: Tensor) -> CardCall:
    """torch's product with the 2:4 weight that has the larger two of every four."""
    label = "torch 2:4 bfloat16"
    if dense.shape[1] % 4:
        reason = f"{dense.shape[1]} inputs are no whole groups of 4"
        return CardCall(label, partial(refuse, reason), 0, None)
    groups = dense.reshape(-1, 4)
    weight = groups.masked_fill(rank_in_group(groups.abs().float()) < 2, 0).view_as(dense)
    try:
        compressed = compress_two_four(weight)
    except ValueError as error:
        return CardCall(label, partial(refuse, str(error)), 0, None)
    nbytes = sum(part.nbytes for part in stored_parts(compressed))
    product = x.float() @ weight.float().T
    return CardCall(label, partial(multiply_two_four, x, compressed, None), nbytes, product)


def refuse(reason: str) -> NoReturn:
    raise ValueError(reason)


class Replayed:
    """Calls on a card as one graph.  They have run before, so that nothing is compiled in it."""

    def __init__(self, works: Sequence[Callable[[], object]], device: torch.device) -> None:
        self.device, self.count = device, len(works)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self.graph):
            self.outputs = [work() for work in works]  # their memory is the graph's

    def seconds(self) -> float:
        """Of a call, on average."""
        with torch.cuda.device(self.device):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            for _ in range(REPLAYS):
                self.graph.replay()
            ended.record()
            ended.synchronize()
        return begun.elapsed_time(ended) / 1e3 / (REPLAYS * self.count)

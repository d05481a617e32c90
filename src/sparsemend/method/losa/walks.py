"""Walks over the calibration windows that build each update once per block, not once per window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from sparsemend.blocks.find import find_blocks
from sparsemend.method.losa.linear import LosaLinear


@contextmanager
def merged_by_block(model: nn.Module) -> Iterator[None]:
    """Let every LosaLinear keep what it multiplies by while the block that it lies in is visited.

    It applies in eval mode without gradients, and gives the very same bits.  What the block before
    kept is dropped when another one is entered, so that there is one block's at a time.
    """
    visited: list[LosaLinear] = []

    def enter(linears: list[LosaLinear], block: nn.Module, arguments: Any) -> None:
        if visited[:1] != linears[:1]:
            _drop(visited)
            visited[:] = linears

    with ExitStack() as after:
        for block in find_blocks(model)[1]:
            linears = [m for m in block.modules() if isinstance(m, LosaLinear)]
            for linear in linears:
                linear.keeps_merged = True
            after.callback(_stop, linears)
            after.callback(block.register_forward_pre_hook(partial(enter, linears)).remove)
        yield


def _drop(linears: list[LosaLinear]) -> None:
    for linear in linears:
        linear.merged = None


def _stop(linears: list[LosaLinear]) -> None:
    _drop(linears)
    for linear in linears:
        linear.keeps_merged = False

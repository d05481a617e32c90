"""The names under which a checkpoint holds the linears of a model; README.md says their forms.

What is only renamed on its way to the checkpoint is seen on the meta device.  Where tensors are
moved, every linear is sent there as its number, and the saved tensors tell which they hold.  One
block of a kind is sent, since those like it hold theirs in the same places.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.names import SAVED_NAMES
from sparsemend.layout.saved import BlockState, block_states, key_of

Held = list[list[str]]  # linears by their name in the block, of every saved tensor


def name_linears_(model: nn.Module) -> None:
    """Note on `model` the saved names of its linears and blocks, where they have others."""
    if isinstance(model, PreTrainedModel) and SAVED_NAMES not in vars(model):
        names = saved_names(model)
        vars(model)[SAVED_NAMES] = {name: saved for name, saved in names.items() if saved != name}


@torch.no_grad()
def saved_names(model: PreTrainedModel) -> dict[str, str]:
    """Module name -> saved name of every linear of the blocks, and of the blocks.

    A linear that lies in no saved tensor keeps its module's name.  Raises ValueError where the
    model has no blocks.
    """
    names: dict[str, str] = {}
    alike: dict[object, Held] = {}
    for state in block_states(model):
        names[state.name] = _block_name(state)
        renamed = {key_of(name): key_of(saved) for saved, name in state.renamed.items()}
        linears = [key_of(name) for name in state.linears]
        moved = [name for name in linears if name not in renamed]
        names |= {name: renamed.get(name, name) for name in linears}
        if moved:
            kind = _kind(state)
            if kind not in alike:
                alike[kind] = _linears_in_tensors(state)
            names |= _of_moved(state, alike[kind])
    return names


def _kind(state: BlockState) -> object:
    """What two blocks agree in that hold their linears in the same places."""
    inside = [(key.removeprefix(state.name), like.shape) for key, like in state.state.items()]
    return (len(state.moved), *inside)


def _linears_in_tensors(state: BlockState) -> Held:
    """The linears in each of the saved tensors that are moved, each sent there as its number."""
    numbers = {name: number for number, name in enumerate(state.linears)}
    linears = [key_of(name).removeprefix(f"{state.name}.") for name in numbers]

    def number(name: str, like: Tensor) -> Tensor:
        return torch.full(like.shape, numbers.get(name, -1), dtype=torch.int16)

    sent = state.send(number)
    return [[linears[n] for n in _numbers_in(sent[saved]) if n >= 0] for saved in state.moved]


def _numbers_in(code: Tensor) -> list[int]:
    """The numbers in a saved tensor, of which each linear is a part along one axis, or two."""
    if code.ndim < 2:
        return []
    edges = [code.select(axis, 0).flatten() for axis in (-1, -2)]
    numbers: list[int] = torch.cat(edges).unique().tolist()
    return numbers


def _of_moved(state: BlockState, held: Held) -> dict[str, str]:
    """Module name -> saved name of the linears in tensors that are moved."""
    parts: dict[str, list[str]] = {}
    for saved, linears in zip(state.moved, held, strict=True):
        for linear in linears:
            part = key_of(saved) + _which(linear, linears)
            parts.setdefault(f"{state.name}.{linear}", []).append(part)
    return {name: " + ".join(saved) for name, saved in parts.items()}


def _which(linear: str, linears: Sequence[str]) -> str:
    """What tells a linear from the others of its tensor, as `[3, gate]`; empty if it is alone."""
    if len(linears) == 1:
        return ""
    rows = [name.split(".") for name in linears]
    first = len(_common_parts(rows))
    differing = [i for i in range(first, max(map(len, rows))) if len({*_column(rows, i)}) > 1]
    parts = linear.split(".")
    return f"[{', '.join(parts[i].removesuffix('_proj') for i in differing if i < len(parts))}]"


def _column(rows: Sequence[Sequence[str]], index: int) -> list[str]:
    return ["".join(row[index : index + 1]) for row in rows]


def _common_parts(rows: Sequence[Sequence[str]]) -> list[str]:
    """The parts that all of these names begin with."""
    columns = itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*rows, strict=False))
    return [parts[0] for parts in columns]


def _block_name(state: BlockState) -> str:
    """What the saved names of a block's tensors begin with, up to its number.

    The module's name where they share no number, as where a checkpoint cuts its blocks otherwise.
    """
    shared = _common_parts([saved.split(".") for saved in (*state.renamed, *state.moved)])
    while shared and not shared[-1].isdigit():
        shared = shared[:-1]
    return ".".join(shared) or state.name

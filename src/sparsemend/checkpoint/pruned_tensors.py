"""The tensors of a checkpoint that a run prunes: what its names, its config and its masks say.

Where there are masks, they decide: a tensor with a mask is one, and its mask knows the axis of the
inputs.  What else looks like a linear has to be listed there as one that stays dense on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemend.checkpoint.headers import TensorHeader, TensorShape
from sparsemend.checkpoint.linears import (
    BLOCK_TENSOR,
    Stored,
    block_number,
    block_tensors,
    stored_linears,
)
from sparsemend.checkpoint.masks import Masks
from sparsemend.config.prunable import PrunableNames, defaults

PACKED = re.compile(r"(weight|qweight|_packed|_blocks)$")  # how quantised weights are called
INTEGERS = ("F4", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


@dataclass(frozen=True)
class PrunedTensors:
    """Tensors by name, without a final `.weight`, in the order of the blocks.

    linears: those that are pruned; stays_dense: those that the masks file lists as dense; left_out:
    those without a mask that are called routers, or that the file has in no block, so that the
    run saw no linear there.
    """

    linears: Mapping[str, Stored]
    stays_dense: Mapping[str, Stored]
    left_out: Mapping[str, Stored]


def tensor_of(name: str, headers: Mapping[str, Any]) -> str:
    """The full name of a tensor from that without a final `.weight`."""
    return f"{name}.weight" if f"{name}.weight" in headers else name


def tensors_by_names(
    path: Path, headers: Mapping[str, TensorHeader], config: Mapping[str, Any] | None
) -> PrunedTensors:
    """The linears of a checkpoint without masks.

    Raises ValueError where it has none, or where integers stand for its weights.
    """
    blocks = block_tensors({name: header.shape for name, header in headers.items()}, config)
    _check_floats(path, blocks, headers)
    linears = stored_linears(blocks, config)
    if not linears:
        raise ValueError(
            f"{path} has no linear inside decoder blocks (`prefix.NUMBER.name.weight` of two "
            "dimensions); give the folder or file with a causal LM's weights"
        )
    pruned = _routers().without_dense(linears) or linears
    routers = {name: stored for name, stored in linears.items() if name not in pruned}
    return PrunedTensors(_in_order(pruned), {}, _in_order(routers))


def _routers() -> PrunableNames:
    """The choice that a run makes by default."""
    return PrunableNames(include=None, exclude=defaults())


def tensors_by_masks(
    path: Path,
    headers: Mapping[str, TensorHeader],
    config: Mapping[str, Any] | None,
    masks_path: Path,
    masks: Masks,
) -> PrunedTensors:
    """The linears of a checkpoint with masks; raises ValueError where they are of other weights."""
    shapes = {name: header.shape for name, header in headers.items()}
    listed = masks.stays_dense or ()
    named = (*masks.by_name, *listed)
    prefixes = {match["prefix"] for name in named if (match := BLOCK_TENSOR.fullmatch(name))}
    inside = {name: shape for name, shape in shapes.items() if _prefix(name) in prefixes}
    blocks = block_tensors(inside or shapes, config)
    _check_floats(path, blocks, headers)
    linears = stored_linears(blocks, config)
    for name, mask in masks.by_name.items():
        if shapes.get(tensor_of(name, shapes)) == mask.shape:
            linears[name] = Stored(mask.shape, mask.inputs_last)
    dense = {
        name: linears.get(name, Stored(shapes[tensor_of(name, shapes)]))
        for name in listed
        if name not in masks.by_name and tensor_of(name, shapes) in shapes
    }
    missing = {n: s for n, s in linears.items() if n not in masks.by_name and n not in dense}
    unlisted = _of_no_block(missing, named) if masks.stays_dense is not None else {}
    left_out = {n: s for n, s in missing.items() if n in unlisted or not _routers().allow(n)}
    pruned = {name: s for name, s in linears.items() if name not in dense and name not in left_out}
    _check_same(masks_path, masks, shapes, pruned)
    return PrunedTensors(_in_order(pruned), _in_order(dense), _in_order(left_out))


def _prefix(name: str) -> str | None:
    match = BLOCK_TENSOR.fullmatch(name)
    return match["prefix"] if match else None


def _of_no_block(missing: Mapping[str, Stored], named: tuple[str, ...]) -> dict[str, Stored]:
    """Those whose name, but for its numbers, a masks file that lists all linears does not have."""
    kinds = {re.sub(r"\d+", "N", name) for name in named}
    return {name: s for name, s in missing.items() if re.sub(r"\d+", "N", name) not in kinds}


def _check_floats(
    path: Path, blocks: Mapping[str, TensorShape], headers: Mapping[str, TensorHeader]
) -> None:
    for name, shape in blocks.items():
        if len(shape) > 1 and headers[name].dtype in INTEGERS and PACKED.search(name):
            raise ValueError(
                f"{path} stores weights as {headers[name].dtype}, first {name}: it is quantised; "
                "give the checkpoint from before quantisation"
            )


def _check_same(
    path: Path,
    masks: Masks,
    shapes: Mapping[str, TensorShape],
    pruned: Mapping[str, Stored],
) -> None:
    """Raise ValueError unless masks and linears have the same names and shapes."""
    of_mask = {name: mask.shape for name, mask in masks.by_name.items()}
    of_weight = {name: stored.shape for name, stored in pruned.items()} | {
        name: shapes[tensor_of(name, shapes)]
        for name in of_mask
        if tensor_of(name, shapes) in shapes
    }
    names = sorted(of_mask.keys() | of_weight.keys())
    odd = [name for name in names if of_mask.get(name) != of_weight.get(name)]
    if odd:
        raise ValueError(
            f"{path} is not of these weights: {odd[0]} has {of_mask.get(odd[0], 'no mask')} there "
            f"and {of_weight.get(odd[0], 'no weight')} in the checkpoint ({len(odd)} linears "
            "differ); name the right file with --masks"
        )


def _in_order(linears: Mapping[str, Stored]) -> dict[str, Stored]:
    """By block and name; what lies in no block comes first."""

    def place(name: str) -> tuple[int, str]:
        return (block_number(name) if BLOCK_TENSOR.fullmatch(name) else -1, name)

    return {name: linears[name] for name in sorted(linears, key=place)}

"""Packs the linears of a pruned model in place, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.names import saved_name
from sparsemend.blocks.plain import multiplies
from sparsemend.engine.linear import PackedLinear
from sparsemend.engine.packed import check_weight, pack_weight
from sparsemend.sparse.linear import SparseLinear


@torch.no_grad()
def pack_linear(linear: nn.Module, *, values: str) -> PackedLinear:
    """The packed form of a SparseLinear on its support, or of an nn.Linear or Conv1D with zeros.

    values: `float32`, `bfloat16` or `int8`.  Raises ValueError where the weight cannot be stored
    so, or the linear is none of these.
    """
    weight, keep = _weight(linear)
    bias = linear.bias
    assert bias is None or isinstance(bias, Tensor)
    packed = pack_weight(weight.cpu(), keep=None if keep is None else keep.cpu(), values=values)
    return PackedLinear(packed, None if bias is None else bias.cpu())


@torch.no_grad()
def pack_linears_(model: nn.Module, *, values: str, least_sparsity: float) -> list[str]:
    """Pack the linears of the decoder blocks that have enough zeros; returns their names.

    least_sparsity: the fraction of zeros from which on a linear is packed; the others stay as they
    are.  Raises ValueError naming the linear that cannot be packed, and where none has the zeros;
    the model is as it was then.
    """
    prefix, blocks = find_blocks(model)
    linears = {
        f"{prefix}.{name}": module
        for name, module in blocks.named_modules()
        if multiplies(module) or type(module) is Conv1D
    }
    names = [
        name
        for name, linear in linears.items()
        if _can_be_packed(saved_name(model, name), linear, values, least_sparsity)
    ]
    for name in names:
        model.set_submodule(name, pack_linear(linears.pop(name), values=values))
    if not names:
        raise ValueError(
            f"no linear of the decoder blocks has a sparsity of {least_sparsity} or more, so there "
            "is nothing to pack; prune the model first"
        )
    return names


def _can_be_packed(name: str, linear: nn.Module, values: str, least_sparsity: float) -> bool:
    """Whether a linear has enough zeros; raises ValueError where it has, and cannot be packed."""
    try:
        weight, keep = _weight(linear)
        if 1 - int(weight.count_nonzero()) / weight.numel() < least_sparsity:
            return False
        check_weight(weight, keep=keep, values=values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return True


def _weight(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(weight (O, I), its support where it has one)."""
    if isinstance(linear, SparseLinear):
        if not linear.holds_support:
            raise ValueError("it carries an adapter that is not folded in; export the model first")
        return linear.effective_weight(), linear.keep
    if type(linear) is Conv1D:
        return linear.weight.T, None
    if multiplies(linear):
        return linear.weight, None
    raise ValueError(f"{type(linear).__name__} is no linear that can be packed")

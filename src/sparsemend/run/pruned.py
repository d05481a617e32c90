"""A pruned model as tensors that take no room for zeros, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from sparsemend.blocks.find import prunable_linears
from sparsemend.run.cache import Content
from sparsemend.sparse.linear import SparseLinear, sparse_linears
from sparsemend.sparse.packing import unpack
from sparsemend.sparsity_schedule.base import Allocation


@torch.no_grad()
def pruned_content(model: nn.Module, allocation: Allocation) -> Content:
    """Kept weights (n,) and packed support of every SparseLinear, on the CPU."""
    tensors = {}
    for name, linear in sparse_linears(model):
        tensors[f"{name}.kept"] = linear.weight[linear.keep].cpu()
        tensors[f"{name}.keep"] = linear.packed_keep.cpu()
    return Content(asdict(allocation), tensors)


@torch.no_grad()
def restore_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Turn a dense model into the pruned one of `pruned_content`, bit for bit."""
    for name, linear in prunable_linears(model).items():
        if f"{name}.keep" not in tensors:
            continue  # it stays dense
        device = linear.weight.device
        keep = unpack(tensors[f"{name}.keep"].to(device), linear.in_features)
        linear.weight.masked_scatter_(keep, tensors[f"{name}.kept"].to(device))
        model.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))

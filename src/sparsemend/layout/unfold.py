"""Every linear of a model as nn.Linear, and back to what its class and its checkpoints hold.

Fused experts become a module of linears per expert, and the transposed Conv1D of GPT-2 becomes
nn.Linear.  Tensors are copied module by module and the old ones released, so no more than the
experts of one block are held twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparsemend.layout.experts import linears_in
from sparsemend.layout.fused import Unfolded


class FromConv1D(nn.Module):
    """A note, kept as a child of a module, which of its linears were Conv1D when it was loaded."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names


NOTE = "linears_from_conv1d"


@torch.no_grad()
def unfold_(model: nn.Module) -> None:
    """Turn what stores linears otherwise into nn.Linear, in place; where nothing does, nothing."""
    for module in list(model.modules()):
        for name in [name for name, _ in module.named_children()]:
            if (linears := linears_in(module.get_submodule(name))) is not None:
                module.add_module(name, linears)
    for module in _parents(model, Conv1D):
        names = tuple(name for name, child in module.named_children() if type(child) is Conv1D)
        for name in names:
            module.add_module(name, _linear(module.get_submodule(name)))
        module.add_module(NOTE, FromConv1D(names))


@torch.no_grad()
def fold_(model: nn.Module) -> None:
    """Undo `unfold_`, in place, with the weights as they are now; no linear may be sparse."""
    for module in _parents(model, Unfolded):
        for name in [name for name, _ in module.named_children()]:
            module.add_module(name, _fold(module.get_submodule(name)))
    for module in _parents(model, FromConv1D):
        note = module.get_submodule(NOTE)
        assert isinstance(note, FromConv1D)
        for name in note.names:
            module.add_module(name, _conv1d(module.get_submodule(name)))
        delattr(module, NOTE)


def _fold(module: nn.Module) -> nn.Module:
    return module.fold() if isinstance(module, Unfolded) else module


def _parents(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """The modules with a child of a kind; they alone are held, so that the children may go."""
    return [m for m in model.modules() if any(isinstance(child, kind) for child in m.children())]


@contextmanager
def fold_within(model: nn.Module) -> Iterator[None]:
    """Fold `model` while the block runs; afterwards it has the very modules that it had."""
    children = [(m, name, child) for m in model.modules() for name, child in m.named_children()]
    laid = [item for item in children if isinstance(item[2], Unfolded | FromConv1D)]
    notes = [(module, note) for module, _, note in laid if isinstance(note, FromConv1D)]
    laid += [(m, name, m.get_submodule(name)) for m, note in notes for name in note.names]
    fold_(model)
    try:
        yield
    finally:
        for module, name, child in laid:
            module.add_module(name, child)
            if isinstance(child, Unfolded):
                child.release_()


def folded_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `fold_` would make of `tensors`, one for each of the state of `module`, by name."""
    result = dict(tensors)
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(part, Unfolded):
            parts = {n: result.pop(n) for n in tensors if n.startswith(prefix)}
            parts = {n.removeprefix(prefix): tensor for n, tensor in parts.items()}
            result |= {f"{prefix}{n}": tensor for n, tensor in part.fuse(parts).items()}
            kept = {n.removeprefix("fused."): t for n, t in parts.items() if n.startswith("fused.")}
            result |= {f"{prefix}{n}": tensor for n, tensor in kept.items()}
        elif isinstance(part, FromConv1D):
            for linear in part.names:
                weight = f"{path.removesuffix(NOTE)}{linear}.weight"
                result[weight] = result[weight].t().contiguous()
    return result


def _linear(conv1d: nn.Module) -> nn.Linear:
    weight, bias = conv1d.get_parameter("weight"), conv1d.get_parameter("bias")
    in_features, out_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device="meta")
    linear.weight = _like(weight, weight.t().contiguous())
    linear.bias = bias
    return linear


def _conv1d(linear: nn.Module) -> Conv1D:
    weight = linear.get_parameter("weight")
    with torch.device("meta"):
        conv1d = Conv1D(*weight.shape)
    conv1d.weight = _like(weight, weight.t().contiguous())
    conv1d.bias = linear.get_parameter("bias")
    return conv1d


def _like(parameter: nn.Parameter, tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=parameter.requires_grad)

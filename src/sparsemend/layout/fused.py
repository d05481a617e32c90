"""Several linears in one tensor, and a module whose tensors are taken apart into linears.

`FusedTensor.views` alone says where a linear lies in a fused tensor.  Unfolding copies out of the
views, folding copies into them, so the two undo each other to the bit, and the bits of supports go
the same way as weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FusedTensor:
    """One fused tensor of a module: E experts, each with the linears named, outputs in a row.

    name: of the tensor, from its module.  linears: of one expert, in the order of their outputs; an
    empty name makes the expert itself the linear.  transposed: (E, I, O), not (E, O, I).
    interleaved: output k of linear j is row k * len(linears) + j.  An axis of experts may be
    flattened into the next one, as in (E * O, I).
    """

    name: str
    linears: tuple[str, ...]
    experts: int
    transposed: bool = False
    interleaved: bool = False
    bias: bool = False

    def views(self, fused: Tensor) -> dict[str, Tensor]:
        """The part of `fused` that each linear's weight (O, I) or bias (O,) is, by its name."""
        stacked = fused
        if not self.bias:
            stacked = fused.view(self.experts, -1, fused.shape[-1])
            stacked = stacked.transpose(1, 2) if self.transposed else stacked
        count, kind = len(self.linears), "bias" if self.bias else "weight"
        parts = {}
        for expert, outputs in enumerate(stacked):
            share = outputs.shape[0] // count
            for index, linear in enumerate(self.linears):
                rows = (
                    outputs[index::count]
                    if self.interleaved
                    else outputs[index * share : (index + 1) * share]
                )
                parts[".".join(filter(None, (str(expert), linear, kind)))] = rows
        return parts


class Unfolded(nn.Module):
    """Ordinary linears, named as `FusedTensor` says, in the place of a module with fused tensors.

    fused: that module, without those tensors: what else its forward reads stays where it is.
    """

    fused: Any

    def __init__(self, fused: nn.Module, places: Sequence[FusedTensor]) -> None:
        """Take the tensors of `fused` over; weights before biases."""
        super().__init__()
        self.fused = fused
        self.places = tuple(places)
        self.shapes: dict[str, torch.Size] = {}
        for place in places:
            tensor = fused.get_parameter(place.name)
            self.shapes[place.name] = tensor.shape
            for name, view in place.views(tensor.detach()).items():
                copy = view.clone(memory_format=torch.contiguous_format)
                self._give_(name, nn.Parameter(copy, requires_grad=tensor.requires_grad))
            _replace_parameter_(fused, place.name, None)

    def __getattr__(self, name: str) -> Any:
        """As of a module; a fused tensor has its shape alone, which conversions of names read."""
        shape = vars(self).get("shapes", {}).get(name)
        if shape is None:
            return super().__getattr__(name)
        return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

    def release_(self) -> None:
        """Take the fused tensors, of which the linears hold copies, out of `fused` again."""
        for name in self.shapes:
            _replace_parameter_(self.fused, name, None)

    def _give_(self, name: str, parameter: nn.Parameter) -> None:
        """Make `parameter` the weight or bias `name`, of a linear that its weight brings."""
        path, _, kind = name.rpartition(".")
        if kind == "weight":
            expert, _, linear = path.rpartition(".")
            if expert and expert not in self._modules:
                self.add_module(expert, nn.Module())
            out_features, in_features = parameter.shape
            made = nn.Linear(in_features, out_features, bias=False, device="meta")
            self.get_submodule(expert).add_module(linear, made)
        self.get_submodule(path).register_parameter(kind, parameter)

    def fuse(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fused tensors of `parts`, which are tensors of the linears by name, of any dtype."""
        fused = {}
        for place in self.places:
            one = parts[
                next(iter(place.views(torch.empty(self.shapes[place.name], device="meta"))))
            ]
            fused[place.name] = torch.empty(
                self.shapes[place.name], dtype=one.dtype, device=one.device
            )
            for name, view in place.views(fused[place.name]).items():
                view.copy_(parts[name])
        return fused

    def fold(self) -> nn.Module:
        """The module as it was, with the weights as they are now, which it does not share."""
        parts = dict(self.named_parameters())
        for name, tensor in self.fuse({n: p.detach() for n, p in parts.items()}).items():
            trained = any(p.requires_grad for n, p in parts.items() if not n.startswith("fused."))
            _replace_parameter_(self.fused, name, nn.Parameter(tensor, requires_grad=trained))
        return self.fused


def _replace_parameter_(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    path, _, last = name.rpartition(".")
    module.get_submodule(path).register_parameter(last, parameter)

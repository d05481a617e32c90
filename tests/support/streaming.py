"""A model whose blocks lie elsewhere, as those of a streamed checkpoint do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import Carried, Residency, attach_residency


class Elsewhere(Residency):
    """Keeps the blocks' tensors out of the model, which has them on the meta device meanwhile.

    visits: (block, whether changes were asked for) of every time one was brought in.
    most: how many blocks were there at once, at most, of this model.
    """

    streams = True

    def __init__(self, model: nn.Module) -> None:
        self.blocks = find_blocks(model)[1]
        self.stored = [_tensors(block) for block in self.blocks]
        self.visits: list[tuple[int, bool]] = []
        self.most = self._there = 0
        self.empty = [_without_values(tensors) for tensors in self.stored]
        for block, empty in zip(self.blocks, self.empty, strict=True):
            _put_(block, empty)

    @property
    def last(self) -> int:
        """Index of the last block."""
        return len(self.blocks) - 1

    @contextmanager
    def resident(
        self,
        index: int,
        device: torch.device,
        *,
        offload: bool = False,
        changes: bool = False,
        carried: Carried | None = None,
    ) -> Iterator[nn.Module]:
        block = self.blocks[index]
        _put_(block, {name: t.to(device, copy=True) for name, t in self.stored[index].items()})
        self.visits.append((index, changes))
        self._there += 1
        self.most = max(self.most, self._there)
        try:
            yield block
            if changes:
                self.stored[index] = _tensors(block)
                self.empty[index] = _without_values(self.stored[index])
        finally:
            _put_(block, self.empty[index])
            self._there -= 1


def streamed(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its blocks elsewhere."""
    attach_residency(model, Elsewhere(model))
    return model


def brought_back(model: PreTrainedModel) -> PreTrainedModel:
    """A streamed model with all its blocks in memory again, streamed no more."""
    residency = vars(model).pop("_block_residency")
    for block, tensors in zip(residency.blocks, residency.stored, strict=True):
        _put_(block, tensors)
    return model


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    return {
        **{name: parameter.detach() for name, parameter in block.named_parameters()},
        **dict(block.named_buffers()),
    }


def _put_(block: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        place, _, attribute = name.rpartition(".")
        module = block.get_submodule(place)
        if attribute in module._parameters:
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[attribute] = tensor


def _without_values(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}

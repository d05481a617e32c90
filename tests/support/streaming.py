"""A model whose blocks lie elsewhere, as those of a streamed checkpoint do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.residency import Carried, Residency, attach_residency


@dataclass(frozen=True)
class Stored:
    """A tensor as bytes, which no count of living tensors sees."""

    raw: np.ndarray[Any, np.dtype[np.uint8]]
    dtype: torch.dtype
    shape: torch.Size

    @staticmethod
    def of(tensor: Tensor) -> Stored:
        flat = tensor.detach().cpu().contiguous().flatten()
        return Stored(flat.view(torch.uint8).numpy().copy(), tensor.dtype, tensor.shape)

    def read(self, device: torch.device) -> Tensor:
        tensor = torch.from_numpy(self.raw).view(self.dtype).reshape(self.shape)
        return tensor.to(device, copy=True)

    def empty(self) -> Tensor:
        return _empty(self.shape, self.dtype)


@cache
def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Elsewhere(Residency):
    """Keeps the blocks' tensors out of the model, which has them on the meta device meanwhile.

    visits: (block, whether changes were asked for) of every time one was brought in.
    most: how many blocks of this model were there at once, at most.
    finished: first blocks that an earlier attempt has changed, for the next loop to take up.
    """

    streams = True

    def __init__(self, model: nn.Module) -> None:
        self.blocks = find_blocks(model)[1]
        self.stored = [_store(block) for block in self.blocks]
        self.visits: list[tuple[int, bool]] = []
        self.most = self._there = self.finished = 0
        self._carried = ["{}"] * len(self.blocks)
        for index in range(len(self.blocks)):
            self._take_away_(index)

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
        self.bring_(index, device)
        self.visits.append((index, changes))
        self._there += 1
        self.most = max(self.most, self._there)
        try:
            yield block
            if changes:
                self.stored[index] = _store(block)
                self._carried[index] = json.dumps({} if carried is None else carried.to_carry())
        finally:
            self._take_away_(index)
            self._there -= 1

    def take_up(self, carried: Carried | None = None) -> int:
        finished, self.finished = self.finished, 0
        if finished and carried is not None:
            carried.carry_on_(json.loads(self._carried[finished - 1]))
        return finished

    def bring_(self, index: int, device: torch.device) -> None:
        _put_(self.blocks[index], {n: s.read(device) for n, s in self.stored[index].items()})

    def _take_away_(self, index: int) -> None:
        _put_(self.blocks[index], {n: s.empty() for n, s in self.stored[index].items()})


def streamed(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its blocks elsewhere."""
    attach_residency(model, Elsewhere(model))
    return model


def brought_back(model: PreTrainedModel) -> PreTrainedModel:
    """A streamed model with all its blocks in memory again, streamed no more."""
    residency = vars(model).pop("_block_residency")
    for index in range(len(residency.blocks)):
        residency.bring_(index, torch.device("cpu"))
    return model


def _store(block: nn.Module) -> dict[str, Stored]:
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    return {name: Stored.of(tensor) for name, tensor in tensors.items()}


def _put_(block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        place, _, attribute = name.rpartition(".")
        module = block.get_submodule(place)
        if attribute in module._parameters:
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[attribute] = tensor

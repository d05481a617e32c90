"""What a training step minimises: next-token cross-entropy, or what replaces it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.training.batches import next_token_loss


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise, and detached scalars to log that it is made of, by name."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """The loss of a model on labelled windows; a mean over labelled positions, in fp32.

    One that is no such mean would not add up over micro-batches and processes.
    """

    @abstractmethod
    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Loss:
        """The loss of `model` on windows `tokens` and `labels` (B, T)."""

    def prepare(self, device: torch.device) -> None:
        """Called in every process before its first step, with the device it trains on."""
        return

    def report(self) -> dict[str, Any]:
        """What the result tells of it."""
        return {}


class NextToken(Objective):
    """Cross-entropy of the next token, the default."""

    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Loss:
        return Loss(next_token_loss(model, tokens, labels))

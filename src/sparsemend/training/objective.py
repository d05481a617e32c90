"""The loss that a training step minimises: next-token cross-entropy, or a replacement of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsemend.training.logits import next_token_loss


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise, and its parts by name, detached scalars to log."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """The loss of a model on labelled windows; a mean over labelled positions, in fp32.

    A loss that is not such a mean would not add up over micro-batches and processes.
    """

    @abstractmethod
    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Loss:
        """The loss of `model` on windows `tokens` and `labels` (B, T)."""

    def prepare(self, device: torch.device) -> None:
        """Get ready to train on `device`; called in every process before its first step."""
        return

    def report(self) -> dict[str, Any]:
        """Entries that the run's result has about this objective."""
        return {}


class NextToken(Objective):
    """Cross-entropy of the next token, the default."""

    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Loss:
        return Loss(next_token_loss(model, tokens, labels))

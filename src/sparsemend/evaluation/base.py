"""The contract of every evaluation: a model in, named numbers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.data.base import Examples


@dataclass(frozen=True, kw_only=True)
class EvaluationInput:
    """What an evaluation may read: test windows (N, T), the tokenizer, where and how to batch.

    task: labelled test windows of the task that was trained on, None where there is none.
    out, state: the run's folder, and which of dense, pruned, repaired is measured.
    """

    test: Tensor
    task: Examples | None
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    batch_size: int
    out: Path
    state: str


class Evaluation(ABC):
    """Measures one model; metric names are `group/name`."""

    @abstractmethod
    def __call__(self, model: PreTrainedModel, given: EvaluationInput) -> dict[str, float]:
        """Metrics of `model`, which is left as it was."""

    def describe(self) -> dict[str, Any]:
        """What the result's protocol says of it, where the windows alone do not say it."""
        return {}

"""The contract of every evaluation: a model in, named numbers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.blocks.forwards import forwards
from sparsemend.blocks.states import StatesPlace
from sparsemend.data.base import Examples

T = TypeVar("T")


class Unfinished(Protocol):
    """Keeps the rows of a measurement under way, so that a later attempt goes on after them."""

    def begun(self, part: str) -> tuple[int, Tensor] | None:
        """(number of batches, their rows) that an earlier attempt measured of a part, if any."""

    def keep(self, part: str, batches: int, rows: Callable[[], Tensor]) -> None:
        """Keep the rows of the first batches of a part, if that is due."""

    def forget(self) -> None:
        """Remove what was kept."""


class KeepNothing:
    """An Unfinished for measurements that no later attempt goes on with."""

    def begun(self, part: str) -> tuple[int, Tensor] | None:
        return None

    def keep(self, part: str, batches: int, rows: Callable[[], Tensor]) -> None:
        return

    def forget(self) -> None:
        return


@dataclass(frozen=True, kw_only=True)
class EvaluationInput:
    """The inputs of an evaluation: test windows (N, T), the tokenizer, device and batch size.

    task: labelled test windows of the task that was trained on, None where there is none.
    out, state: the run's folder, and which of dense, pruned, repaired is measured.
    validation: labelled validation windows, empty where no evaluation `needs_validation`.
    load_dense: loads the dense model once more, on the host.
    window_losses: filled by an evaluation whose metric is a mean over the test windows: metric
        name -> loss of each window, (N,) fp32 on the host, so that two models can be compared
        window by window.
    unfinished: what an evaluation that takes long keeps of itself while it runs.
    states: where the hidden states of a walk lie.
    states_bytes: those that one walk over a model that streams may have.
    """

    test: Tensor
    task: Examples | None
    validation: Examples
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    batch_size: int
    load_dense: Callable[[], PreTrainedModel]
    out: Path
    state: str
    states: StatesPlace
    states_bytes: int
    window_losses: dict[str, Tensor] = field(default_factory=dict)
    unfinished: Unfinished = field(default_factory=KeepNothing)

    def forwards(
        self, model: PreTrainedModel, batches: Sequence[Tensor], of: Callable[[int, Tensor], T]
    ) -> Iterator[tuple[T, bool]]:
        """`blocks.forwards.forwards` here: (of(number, logits), settled) of batches (B, T)."""
        return forwards(
            model,
            batches,
            of,
            device=self.device,
            states=self.states,
            states_bytes=self.states_bytes,
        )


class Evaluation(ABC):
    """Measures one model; metric names are `group/name`.

    repeatable: equal inputs give equal numbers, so that a sweep measures equal models once.
    streams: it needs one block at a time, so that the others may lie in files.
    """

    repeatable: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    @property
    def needs_validation(self) -> bool:
        """Whether it reads the validation windows."""
        return False

    @property
    def first_windows(self) -> int | None:
        """How many windows of test it reads, from the first; None for all."""
        return None

    @property
    def first_examples(self) -> int | None:
        """How many examples of the task it reads, from the first; None for all."""
        return None

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError where it does not serve here; asked before the model is loaded."""
        return

    @abstractmethod
    def __call__(self, model: PreTrainedModel, inputs: EvaluationInput) -> dict[str, float]:
        """Metrics of `model`, which is left as it was."""

    def describe(self) -> dict[str, Any]:
        """Entries for the result's protocol that the windows alone do not tell."""
        return {}

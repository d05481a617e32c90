"""Learn from the dense model's distribution and hidden states besides the text.

    loss = (1 - w) CE + w t^2 KL(dense || sparse, both at temperature t)
         + h mean over blocks of |s - d|^2 / |d|^2,   s, d: hidden states of one position

The first line is Hinton, Vinyals, Dean 2015 (arXiv 1503.02531).  The second is SquareHead (Kurtic
et al. 2023, arXiv 2310.06927) with its norm taken per position instead of per batch, so that it
adds up over micro-batches and processes.  All are means over the labelled positions.

The teacher is not part of the module that trains: no checkpoint holds it, its dtype and device may
differ, and every process loads its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.data.base import UNLABELLED
from sparsemend.names import DTYPE_NAMES
from sparsemend.training.logits import (
    Predictions,
    next_tokens,
    predict,
    summed_loss,
    token_loss,
)
from sparsemend.training.objective import Loss, Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The settings of learning from the dense model; values live in conf/training/default.yaml."""

    weight: float
    temperature: float
    hidden_weight: float
    teacher_dtype: str | None
    teacher_device: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"method.distill.weight {self.weight} is not in [0, 1]")
        if not self.hidden_weight >= 0:
            raise ValueError(f"method.distill.hidden_weight {self.hidden_weight} is below 0")
        if not self.temperature > 0:
            raise ValueError(f"method.distill.temperature {self.temperature} is not above 0")
        if self.teacher_dtype not in (None, *DTYPE_NAMES):
            raise ValueError(
                f"method.distill.teacher_dtype {self.teacher_dtype!r} is not one of: null, "
                f"{', '.join(DTYPE_NAMES)}"
            )

    @property
    def on(self) -> bool:
        return self.weight > 0 or self.hidden_weight > 0


class Teacher(Objective):
    """The objective that learns from the dense model, loaded once per process before step 1."""

    def __init__(self, settings: Distillation, load: Callable[[], PreTrainedModel]) -> None:
        self.settings, self.load = settings, load
        self._model: PreTrainedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}  # another process loads its own

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            raise RuntimeError("the teacher is not loaded; call prepare(device) before a loss")
        return self._model

    def prepare(self, device: torch.device) -> None:
        if self._model is not None:
            return  # loaded for an earlier fit of the same method
        asked = self.settings.teacher_device
        place = device if asked is None else checked_device(asked)
        with torch.random.fork_rng(devices=[]):  # a model of random weights seeds the generator
            model = self.load()
        nn.Module.to(model, place)
        if self.settings.teacher_dtype is not None:
            # as when a model is loaded in a dtype: rotary frequencies and other buffers stay fp32
            for parameter in model.parameters():
                parameter.data = parameter.data.to(getattr(torch, self.settings.teacher_dtype))
        self._model = model.requires_grad_(False).eval()
        log.info(
            "teacher: the dense model in %s on %s, %.1f MiB",
            self.report()["teacher"]["dtype"],
            place,
            self.report()["teacher"]["bytes"] / 2**20,
        )

    def report(self) -> dict[str, Any]:
        """dtype, device and bytes of the teacher; empty before it is loaded."""
        if self._model is None:
            return {}
        held = [*self.model.parameters(), *self.model.buffers()]
        return {
            "teacher": {
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "device": str(self.model.device),
                "bytes": sum(tensor.nbytes for tensor in held),
            }
        }

    def __call__(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Loss:
        weight, hidden = self.settings.weight, self.settings.hidden_weight
        teacher = self._predictions(tokens)
        student = predict(model, tokens, output_hidden_states=hidden > 0)
        counts = labels[:, 1:] != UNLABELLED
        cross_entropy, kl = self._on_logits(student, teacher, labels)
        total = (1 - weight) * cross_entropy
        parts = {"train/cross_entropy": cross_entropy.detach()}
        if kl is not None:
            total = total + weight * kl
            parts["train/distillation"] = kl.detach()
        if hidden:
            states = student.output.hidden_states, teacher.output.hidden_states
            distance = hidden_distance(*states, counts)
            total = total + hidden * distance
            parts["train/hidden_distance"] = distance.detach()
        return Loss(total, parts)

    def _on_logits(
        self, student: Predictions, teacher: Predictions, labels: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy, and the divergence where it has a weight."""
        if not self.settings.weight:
            return token_loss(student, labels), None
        temperature = self.settings.temperature
        if not student.divided:
            counts = labels[:, 1:] != UNLABELLED
            wanted = teacher.output.logits[:, :-1].to(labels.device)[counts]
            kl = divergence(student.output.logits[:, :-1][counts], wanted, temperature)
            return token_loss(student, labels), kl
        targets = next_tokens(labels)

        def measure(logits: Tensor, part: slice) -> Tensor:
            taught = self._logits(teacher, part).to(logits.device)
            kl = divergences(logits, taught, temperature)
            kl = kl.masked_fill(targets[part] == UNLABELLED, 0).sum()
            return torch.stack([summed_loss(logits, targets[part]), kl])

        cross_entropy, kl = student.mean(measure, targets)
        return cross_entropy, kl

    @torch.no_grad()
    def _predictions(self, tokens: Tensor) -> Predictions:
        device = self.model.device
        with torch.autocast(device.type, enabled=False):  # the teacher computes in its own dtype
            return predict(
                self.model,
                tokens.to(device),
                output_hidden_states=self.settings.hidden_weight > 0,
            )

    @torch.no_grad()
    def _logits(self, teacher: Predictions, part: slice) -> Tensor:
        with torch.autocast(self.model.device.type, enabled=False):
            return teacher.logits(part)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """t^2 KL(teacher || student) of logits (P, V) at temperature t, mean over P positions, in fp32.

    The factor keeps the gradient's size as t grows (Hinton et al. 2015, Sec. 2.1).
    """
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """t^2 KL(teacher || student) of every position (P,), see `divergence`."""
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
    return temperature**2 * kl


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Mean over blocks and counted positions of |s - d|^2 / |d|^2, in fp32.

    student, teacher: hidden states (B, T, D) as transformers gives them: the embeddings first,
    which are left out, and for the last block what the model's final norm makes of its output.
    counts: bool (B, T - 1), the positions whose next token is labelled.
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    for s, d in zip(student[1:], teacher[1:], strict=True):
        wanted = d[:, :-1].to(s.device)[counts].float()
        error = (s[:, :-1][counts].float() - wanted).square().sum(dim=-1)
        norm = wanted.square().sum(dim=-1)
        norm = norm.masked_fill(norm == 0, torch.inf)  # such a state has no relative distance
        total = total + (error / norm).mean()
    return total / (len(student) - 1)


def checked_device(name: str) -> torch.device:
    """The device of this name; raises ValueError unless this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"method.distill.teacher_device={name} is no device: {error}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"method.distill.teacher_device={name}, but torch sees {torch.cuda.device_count()} "
            "CUDA devices; use cpu, or null for where the model trains"
        )
    return device

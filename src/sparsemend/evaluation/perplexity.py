"""Perplexity as the pruning papers report it: independent windows, no overlap, exp of the mean.

    l_w = mean cross-entropy over the T-1 next-token positions of window w;  ppl = exp(mean_w l_w)

The WikiText-2 protocol of SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774).  Logits are
upcast to fp32 a chunk of positions at a time, and windows per forward are limited, so a 128k
vocabulary does not blow memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsemend.data.base import UNLABELLED, Examples, trim
from sparsemend.evaluation.base import Evaluation, EvaluationInput, Unfinished
from sparsemend.names import METRIC, TASK_METRIC, VALIDATION_METRIC, weights_of
from sparsemend.terminal import track

CACHED = 2**23  # bytes of fp32 logits whose loss is computed before they leave a processor's cache
Batch = TypeVar("Batch")
BatchRows = tuple[Tensor, bool]  # rows of a batch, and whether they may be kept now


@dataclass(kw_only=True)
class Perplexity(Evaluation):
    """`perplexity/test` over all test windows; `perplexity/task` where the data has a task.

    The task's is exp of the mean over all labelled tokens: its examples differ in length, so that
    the loss kept of an example is its part of that mean.
    `validation` adds `perplexity/validation`, which searches select by: it is computed as for test
    where every token counts, else as for the task.  `windows` limits each of the three texts;
    `examples`, where it is given, in its place those of which some tokens alone count.
    """

    repeatable: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    validation: bool
    windows: int | None
    examples: int | None
    logits_fp32: bool
    chunk_tokens: int
    logits_bytes: int

    @property
    def needs_validation(self) -> bool:
        return self.validation

    @property
    def first_windows(self) -> int | None:
        return self.windows

    @property
    def first_examples(self) -> int | None:
        return self.windows if self.examples is None else self.examples

    def __call__(self, model: PreTrainedModel, inputs: EvaluationInput) -> dict[str, float]:
        losses = self._each_window(model, inputs.test, inputs, "test")
        inputs.window_losses[METRIC] = losses
        metrics = {METRIC: _perplexity(losses)}
        if inputs.task is not None:
            sums, counts = self._each_example(model, inputs.task, inputs, "task")
            metrics[TASK_METRIC] = exponential(float(sums.sum() / counts.sum()))
            inputs.window_losses[TASK_METRIC] = sums / counts.clamp(min=1)
            inputs.window_losses[weights_of(TASK_METRIC)] = counts
        if self.validation:
            rows = inputs.validation
            is_text = torch.equal(rows.tokens, rows.labels)
            rows = rows.first(self.first_windows if is_text else self.first_examples)
            if is_text:
                losses = self._each_window(model, rows.tokens, inputs, "validation")
                perplexity = _perplexity(losses)
            else:
                sums, counts = self._each_example(model, rows, inputs, "validation")
                perplexity = exponential(float(sums.sum() / counts.sum()))
            metrics[VALIDATION_METRIC] = perplexity
        return metrics

    def _each_window(
        self, model: PreTrainedModel, rows: Tensor, inputs: EvaluationInput, part: str
    ) -> Tensor:
        """The loss of every window, (N,) fp32 on the host."""

        def measure(batches: Sequence[Tensor]) -> Iterator[BatchRows]:
            def losses(number: int, logits: Tensor) -> Tensor:
                return self.window_losses(logits, batches[number].to(inputs.device)).cpu()

            return inputs.forwards(model, batches, losses)

        batches = rows.split(self._batch_size(model, rows, inputs))
        return in_order(batches, measure, inputs.unfinished, part, tokens=rows.numel())

    def _each_example(
        self, model: PreTrainedModel, rows: Examples, inputs: EvaluationInput, part: str
    ) -> tuple[Tensor, Tensor]:
        """The summed loss and the labelled positions of every example, (N,) fp64 on the host."""

        def measure(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[BatchRows]:
            def sums(number: int, logits: Tensor) -> Tensor:
                """(sum of the losses, labelled positions) of a batch's examples, (B, 2)."""
                labels = pairs[number][1]
                losses = self._losses(logits, labels.to(inputs.device))
                counts = (labels[:, 1:] != UNLABELLED).sum(dim=1)
                summed = losses.cpu().double().sum(dim=1)
                return torch.stack([summed, counts.cpu().double()], dim=1)

            return inputs.forwards(model, [tokens for tokens, _ in pairs], sums)

        batch = self._batch_size(model, rows.tokens, inputs)
        batches = zip(rows.tokens.split(batch), rows.labels.split(batch), strict=True)
        pairs = [trim(tokens, labels) for tokens, labels in batches]  # padding is not computed
        both = in_order(pairs, measure, inputs.unfinished, part, tokens=rows.tokens.numel())
        return both[:, 0], both[:, 1]

    def window_losses(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy of each window: (B, T, V) and (B, T) -> (B,) fp32."""
        return self._losses(logits, tokens).mean(dim=1)

    @torch.inference_mode()
    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Next-token cross-entropy per position, (B, T - 1) fp32, 0 where not labelled."""
        targets = labels[:, 1:]
        size = self._positions_at_once(logits)
        losses = [
            self._token_losses(part, aims)
            for window, of_window in zip(logits[:, :-1], targets, strict=True)
            for part, aims in zip(window.split(size), of_window.split(size), strict=True)
        ]
        return torch.cat(losses).view(targets.shape)

    def _positions_at_once(self, logits: Tensor) -> int:
        """Positions whose logits are upcast at a time: fewer than asked for on a CPU.

        There a pass over more than the cache holds takes ten times as long.
        """
        if logits.device.type != "cpu":
            return self.chunk_tokens
        return max(1, min(self.chunk_tokens, CACHED // (4 * logits.shape[-1])))

    def _token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float() if self.logits_fp32 else logits
        return F.cross_entropy(logits, targets, reduction="none", ignore_index=UNLABELLED).float()

    def _batch_size(self, model: PreTrainedModel, rows: Tensor, inputs: EvaluationInput) -> int:
        """Windows per forward: batch_size, or fewer where the logits would exceed logits_bytes."""
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(
                f"{type(model).__name__} has no head over a vocabulary, so no perplexity; load it "
                "with AutoModelForCausalLM"
            )
        vocabulary = head.weight.shape[0]
        per_window = rows.shape[1] * vocabulary * model.dtype.itemsize
        return max(1, min(inputs.batch_size, self.logits_bytes // per_window))


def in_order(
    batches: Sequence[Batch],
    measure: Callable[[Sequence[Batch]], Iterator[BatchRows]],
    unfinished: Unfinished,
    part: str,
    *,
    tokens: int,
) -> Tensor:
    """The rows of all batches, one after the other; an earlier attempt's are not measured again.

    measure: (rows, settled) of batches in their order, on the host; rows are the same whatever
    other batches are measured.  They are kept where settled.  tokens: of all.
    """
    begun = unfinished.begun(part)
    done, rows = (0, []) if begun is None else (begun[0], [begun[1]])
    left = batches[done:]
    share = tokens * len(left) // len(batches)
    shown = track(left, f"perplexity/{part}", tokens=share, total=len(batches))
    for _, (measured, settled) in zip(shown, measure(left), strict=True):
        rows.append(measured)
        done += 1
        if settled:
            unfinished.keep(part, done, lambda: torch.cat(rows))
    return torch.cat(rows)


def _perplexity(losses: Tensor) -> float:
    return exponential(losses.double().mean().item())


def exponential(mean_loss: float) -> float:
    """exp, or infinity where it overflows (a collapsed model is a result, not a crash)."""
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf

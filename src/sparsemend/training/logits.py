"""Next-token losses whose logits never exist whole.

Logits of a batch are (B, T, V), in fp32 for the loss and again for its gradient: 30 GB for 8
windows of 2048 tokens and a vocabulary of 128,256.  Above LOGITS_BYTES the model runs without its
head, and head and loss go over the positions in parts, which backward computes again.  A sum over
parts is that over all but for fp32 rounding; below the bound nothing is divided.

Whether the logits are the head's output and nothing else is seen on two tokens: where a model
scales or caps them, or was compiled, the head runs whole and only what follows is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsemend.data.base import UNLABELLED

LOGITS_BYTES = 2**29  # of fp32 logits at once; a loss has about four such tensors, and its gradient
Measure = Callable[[Tensor, slice], Tensor]  # (logits (P, V), which positions) -> sums (K,), fp32


@dataclass(frozen=True)
class Predictions:
    """The output of a forward pass, and the head that its `logits`, then states, have yet to pass.

    head None: they are logits.
    """

    output: Any
    head: nn.Module | None
    vocabulary: int

    @property
    def divided(self) -> bool:
        """Whether a loss of all positions would exceed the bound."""
        batch, tokens = self.output.logits.shape[:2]
        return 4 * batch * tokens * self.vocabulary > LOGITS_BYTES

    def logits(self, part: slice) -> Tensor:
        """The logits (P, V) at some of the B T positions."""
        return self._logits(self.output.logits, part)

    def _logits(self, states: Tensor, part: slice) -> Tensor:
        states = states.flatten(0, 1)[part]
        logits: Tensor = states if self.head is None else self.head(states)
        return logits

    def mean(self, measure: Measure, targets: Tensor) -> Tensor:
        """The sums of `measure` over all positions, divided by the number of labelled `targets`.

        A part of the positions at a time, of which backward computes the logits again.  NaN where
        nothing is labelled.
        """

        # by its tensors torch knows the device whose autocast is on again in backward
        def sums(states: Tensor, part: slice) -> Tensor:
            return measure(self._logits(states, part), part)

        size, states = max(1, LOGITS_BYTES // (4 * self.vocabulary)), self.output.logits
        total = states[:0].float().sum()  # 0
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            if torch.is_grad_enabled():
                added = checkpoint(
                    sums, states, part, use_reentrant=False, preserve_rng_state=False
                )
            else:
                added = sums(states, part)
            total = total + added
        return total / (targets != UNLABELLED).sum()


def predict(model: nn.Module, tokens: Tensor, **settings: Any) -> Predictions:
    """The predictions of `model` on tokens (B, T), without its head where logits would be large.

    settings: more arguments of its forward.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    vocabulary = head.weight.shape[0] if isinstance(head, nn.Linear) else 0
    large = 4 * tokens.numel() * vocabulary > LOGITS_BYTES
    if large and isinstance(head, nn.Linear) and _ends_with(model, head, tokens):
        with _passing_through(head):
            output = model(input_ids=tokens, use_cache=False, **settings)
        return Predictions(output, head, vocabulary)
    output = model(input_ids=tokens, use_cache=False, **settings)
    return Predictions(output, None, output.logits.shape[-1])


def next_token_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled next-token positions of `tokens` (B, T), in fp32.

    labels (B, T): the token of each position, or UNLABELLED where predicting it does not count.
    """
    return token_loss(predict(model, tokens), labels)


def token_loss(predictions: Predictions, labels: Tensor) -> Tensor:
    """`next_token_loss` from predictions, of which the last position predicts nothing."""
    if not predictions.divided:
        logits = predictions.output.logits[:, :-1].float()
        return F.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=UNLABELLED
        )
    targets = next_tokens(labels)

    def measure(logits: Tensor, part: slice) -> Tensor:
        return summed_loss(logits, targets[part])

    return predictions.mean(measure, targets)


def next_tokens(labels: Tensor) -> Tensor:
    """The label of every position's next token (B T,) from labels (B, T); none after the last."""
    return F.pad(labels[:, 1:], (0, 1), value=UNLABELLED).flatten()


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of the cross-entropy, in fp32, of logits (P, V) at labelled `targets` (P,)."""
    return F.cross_entropy(logits.float(), targets, ignore_index=UNLABELLED, reduction="sum")


_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _ends_with(model: nn.Module, head: nn.Linear, tokens: Tensor) -> bool:
    """Whether the logits of `model` are the output of `head` as it is; seen once per model."""
    if getattr(model, "_compiled_call_impl", None) is not None:
        return False  # it would be compiled anew for another head
    if model not in _plain:
        devices = [tokens.device] if tokens.device.type == "cuda" else []
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(devices),
            _passing_through(head) as seen,
        ):
            logits = model(input_ids=tokens[:1, :2].clone(), use_cache=False).logits
        # the version tells an operation in place
        _plain[model] = [(id(logits), logits._version)] == [(id(s), v) for s, v in seen]
    return _plain[model]


@contextmanager
def _passing_through(head: nn.Module) -> Iterator[list[tuple[Tensor, int]]]:
    """Let `head` return its input, and note it with its version."""
    seen: list[tuple[Tensor, int]] = []

    def forward(states: Tensor) -> Tensor:
        seen.append((states, 0 if states.is_inference() else states._version))
        return states

    before = vars(head).get("forward")
    vars(head)["forward"] = forward
    try:
        yield seen
    finally:
        del vars(head)["forward"]
        if before is not None:
            vars(head)["forward"] = before

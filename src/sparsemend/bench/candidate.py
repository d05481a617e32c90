"""One trained method attached to its own model as training attaches it, ready to be stepped.

A step is forward, backward and optimizer step of one micro-batch.  What a run does besides
(clipping, mask enforcement, drop-and-grow, validation) is not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.instruments import flops, peak_bytes, saved_bytes
from sparsemend.method.base import Workbench
from sparsemend.method.trained import TrainedRepair

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's precisions


class Candidate:
    """A method on `model`, which it takes over."""

    def __init__(
        self,
        method: TrainedRepair,
        model: PreTrainedModel,
        bench: Workbench,
        at_step: int | None = None,
    ) -> None:
        """at_step: the step of a fit to measure, for a method that does more work in some steps."""
        if method.compile:
            raise ValueError("method.compile=true is not measured; set compile: false")
        torch.manual_seed(bench.seed)
        method.attach(model, bench)
        self.objective = method.objective(bench)
        self.objective.prepare(bench.device)
        self.trained = method.free_trainable(model)  # as TrainedRepair.repair does
        model.train()
        self.optimizer = method.make_optimizer(model)
        self.model, self.device, self.precision = model, bench.device, method.precision
        self.method, self.at_step = method, at_step
        self.begin()

    def begin(self) -> None:
        """Bring the model to where the measured step begins."""
        if self.at_step is not None:
            self.method.ready_for(self.model, self.at_step)

    def loss(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels None: every token counts."""
        with self._autocast():
            return self.objective(self.model, tokens, tokens if labels is None else labels).total

    def step(self, tokens: Tensor, labels: Tensor | None = None) -> None:
        self.loss(tokens, labels).backward()
        self.optimizer.step()
        self.release()

    def release(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def figures(self, tokens: Tensor, *, frozen_saved: int) -> dict[str, Any]:
        """The costs of one step besides seconds; frozen_saved: bytes the frozen model saves."""
        with torch.no_grad():
            self.loss(tokens)  # a method that measures its kernels does so here
        saved = saved_for_backward(self.model, lambda: self.loss(tokens))
        forward, backward = flops(lambda: self.loss(tokens))
        self.optimizer.step()  # its state exists from here on
        self.release()
        self.begin()  # what the step makes anew counts towards its peak
        weights = sum(linear.weight.numel() for linear in prunable_linears(self.model).values())
        return {
            "saved_bytes": saved,
            "extra_saved_bytes": saved - frozen_saved,
            "extra_saved_per_weight": (saved - frozen_saved) / weights,
            "forward_flops": forward,
            "backward_flops": backward,
            "peak_bytes": peak_bytes(
                lambda: self.step(tokens), self._lasting_tensors(), self.device
            ),
            "trained_parameters": self.trained,
        }

    def _lasting_tensors(self) -> list[Tensor]:
        """The tensors that live between steps: parameters, buffers, optimizer state."""
        state = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        return [*living(self.model), *state]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.precision])


def living(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def saved_for_backward(model: PreTrainedModel, loss: Any) -> int:
    """Bytes saved by one `loss()` of `model` when gradients flow to its embeddings.

    Every block then saves what it needs to pass a gradient on, the first one too and in a frozen
    model too, so the difference of two models is what their linears save.
    """
    with _gradients_from_the_embeddings(model):
        return saved_bytes(
            loss, living=living(model), linears=list(prunable_linears(model).values())
        )


@contextmanager
def _gradients_from_the_embeddings(model: PreTrainedModel) -> Iterator[None]:
    def require(module: nn.Module, arguments: Sequence[Any], output: Tensor) -> None:
        output.requires_grad_(True)

    handle = model.get_input_embeddings().register_forward_hook(require)
    try:
        yield
    finally:
        handle.remove()

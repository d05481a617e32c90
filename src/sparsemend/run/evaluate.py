"""Measure a model as it is now with every evaluation that was asked for, and record it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.cost import Stages
from sparsemend.evaluation.base import Evaluation, EvaluationInput
from sparsemend.result.record import Result
from sparsemend.result.window_losses import write_losses
from sparsemend.run.cache import Content
from sparsemend.run.parts import Parts
from sparsemend.run.shared import SharedWork
from sparsemend.run.windows import Windows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationStage:
    """Evaluations of one run; called with a state (dense, pruned, repaired) and its model."""

    parts: Parts
    shared: SharedWork
    result: Result
    stages: Stages
    device: torch.device
    out: Path
    seed: int

    def __call__(
        self,
        state: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        windows: Windows,
    ) -> None:
        inputs = self._input_of(state, tokenizer, windows)
        metrics: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        content = self.result.content
        with self.stages.measure("evaluate"):
            for name, evaluation in self.parts.evaluation.items():
                measurement = self.shared.measure(
                    state,
                    name,
                    evaluation,
                    inputs,
                    partial(self._measure, evaluation, model, inputs),
                )
                metrics |= measurement.values
                losses |= measurement.tensors
                if described := evaluation.describe():
                    content["protocol"][name] = described
        content["metrics"][state] = metrics
        write_losses(self.out, state, losses)
        content["cache"] = self.shared.origins
        self.result.costs(self.stages)
        # numbers per block or per task are for result.json
        named = {k: v for k, v in metrics.items() if k.count("/") == 1 and not k[-1].isdigit()}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in named.items())
        log.info("%-8s  %s", state, shown)

    def _measure(
        self, evaluation: Evaluation, model: PreTrainedModel, inputs: EvaluationInput
    ) -> Content:
        """Measure on the device of this run, then put the model back where it lives."""
        fresh = replace(inputs, window_losses={})
        home = next(model.parameters()).device
        nn.Module.to(model, self.device)
        metrics = evaluation(model, fresh)
        nn.Module.to(model, home)
        return Content(metrics, fresh.window_losses)

    def _input_of(
        self, state: str, tokenizer: PreTrainedTokenizerBase | None, windows: Windows
    ) -> EvaluationInput:
        return EvaluationInput(
            test=windows.test,
            task=windows.task,
            validation=windows.validation,
            tokenizer=tokenizer,
            device=self.device,
            batch_size=self.parts.hardware.evaluation_batch,
            load_dense=partial(self.parts.model.load, seed=self.seed),
            out=self.out,
            state=state,
        )

"""The harness's scorer for a model whose blocks lie in files.

The harness asks for the logits of one batch after the other, and a walk over the blocks is worth
its reading only for many batches at once.  So every call for likelihoods is carried out twice: the
first time its batches are noted and answered by zeros, the second time by logits of the walks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.evaluation.base import EvaluationInput

Answers = TypeVar("Answers")


class WalkedLM(HFLM):
    """Answers requests for log-likelihoods; refuses to generate."""

    def __init__(self, model: PreTrainedModel, inputs: EvaluationInput, **settings: Any) -> None:
        """settings: of HFLM."""
        super().__init__(pretrained=model, **settings)
        self._device = inputs.device  # the first weight, which it asks, may not be there
        self._inputs = inputs
        self._logits_of: Callable[[Tensor], Tensor] | None = None

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        ask = super().loglikelihood
        return self._twice(lambda silent: ask(requests, disable_tqdm=silent or disable_tqdm))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        ask = super().loglikelihood_rolling
        return self._twice(lambda silent: ask(requests, disable_tqdm=silent or disable_tqdm))

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        tasks = sorted({str(request.task_name) for request in requests})
        raise ValueError(
            f"{', '.join(tasks)} generates answers token by token, for each of which every block "
            "would be read anew; set hardware.stream=false, or leave it out"
        )

    def _twice(self, ask: Callable[[bool], Answers]) -> Answers:
        batches: list[Tensor] = []
        rows = self.model.get_output_embeddings().weight.shape[0]
        zero = torch.zeros((), dtype=self.model.dtype, device=self.device)

        def note(tokens: Tensor) -> Tensor:
            batches.append(tokens)
            return zero.expand(*tokens.shape, rows)

        self._logits_of = note
        ask(True)
        walked = self._inputs.forwards(self.model, batches, lambda number, logits: logits)
        again = iter(batches)

        def answer(tokens: Tensor) -> Tensor:
            assert torch.equal(tokens, next(again)), "the harness asked otherwise the second time"
            return next(walked)[0]

        self._logits_of = answer
        answers = ask(False)
        assert next(walked, None) is None, "the harness asked less the second time"
        return answers

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert self._logits_of is not None, "logits are asked for outside of likelihoods"
        return self._logits_of(inps)

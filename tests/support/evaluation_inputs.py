"""What an evaluation is given, where a test says only what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.families import random_model
from torch import Tensor

from sparsemend.blocks.states import ON_DEVICE
from sparsemend.data.base import Examples
from sparsemend.evaluation.base import EvaluationInput


def evaluation_input(test: Tensor, *, family: str = "llama", **settings: Any) -> EvaluationInput:
    """Test windows (N, T) on the CPU, no task and no validation, unless `settings` say more."""
    given: dict[str, Any] = {
        "test": test,
        "task": None,
        "validation": Examples.of(test[:0]),
        "tokenizer": None,
        "device": torch.device("cpu"),
        "batch_size": 8,
        "load_dense": lambda: random_model(family),
        "out": Path(),
        "state": "dense",
        "states": ON_DEVICE,
        "states_bytes": 10**9,
    }
    return EvaluationInput(**(given | settings))

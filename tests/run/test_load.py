"""What is refused once the model is there, and before anything is measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.contracts import method_of
from support.families import random_model
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.pruner.existing import Existing
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.load import LoadStage
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_row


def stage(model: PreTrainedModel, **parts: Any) -> LoadStage:
    """Loads `model`."""
    cfg = OmegaConf.create(
        {"seed": 0, "from_run": parts.pop("from_run", None), "pattern_tail": "error"}
    )
    pattern = parts.pop("pattern", Pattern())
    hardware = SimpleNamespace(offload=True)
    made: Any = SimpleNamespace(pruner=Wanda(variant=False), hardware=hardware, **parts)
    shared: Any = SimpleNamespace(model=lambda load: model)
    return LoadStage(cfg, made, pattern, shared, torch.device("cpu"))


def windows() -> Any:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    examples = SimpleNamespace(tokens=tokens)
    return SimpleNamespace(
        test=tokens, calibration=tokens, train=examples, validation=examples, task=None
    )


def nothing() -> None:
    """No masks file."""


def test_a_method_sees_the_model_unless_a_finished_run_is_measured() -> None:
    model, method = random_model("llama").to(torch.bfloat16), method_of("masked_full")
    with pytest.raises(ValueError, match=r"set model\.dtype=float32"):
        stage(model, method=method).model(windows(), nothing)
    finished = stage(model, method=method, from_run="run")
    assert finished.model(windows(), nothing) is model


def test_an_existing_support_is_held_to_the_pattern_unless_a_finished_run_is_measured() -> None:
    model, pattern = random_model("llama"), Pattern(2, 4)
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            score = linear.weight.abs()
            linear.weight.masked_fill_(lowest_per_row(score, score.shape[1] // 2), 0)
    for from_run in (None, "run"):
        asked = stage(model, method=method_of("none"), from_run=from_run, pattern=pattern)
        asked.parts.pruner = Existing(masks=None)  # type: ignore[misc]
        if from_run is None:
            with pytest.raises(ValueError, match="pattern 2:4 does not hold"):
                asked.model(windows(), nothing)
        else:
            assert asked.model(windows(), nothing) is model

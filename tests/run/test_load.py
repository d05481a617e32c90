"""What is refused once the model is there, and before anything is measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.contracts import method_of
from support.families import random_model
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.data.base import UNLABELLED, Examples
from sparsemend.pruner.existing import Existing
from sparsemend.pruner.wanda import Wanda
from sparsemend.run.load import _windows, load_model
from sparsemend.run.memory import Memory
from sparsemend.run.windows import Windows, first_tested
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparse.selection import lowest_per_row


def load(model: PreTrainedModel, **parts: Any) -> PreTrainedModel:
    """Load `model` as a run of these parts does."""
    cfg = OmegaConf.create(
        {
            "seed": 0,
            "from_run": parts.pop("from_run", None),
            "pattern_tail": "error",
            "model": {"path": "here"},
            "hardware": {},
        }
    )
    pattern = parts.pop("pattern", Pattern())
    parts = {"pruner": Wanda(variant=False), **parts}
    source = SimpleNamespace(load=lambda seed: model)
    job: Any = SimpleNamespace(
        cfg=cfg,
        parts=SimpleNamespace(model=source, hardware=SimpleNamespace(offload=True), **parts),
        pattern=pattern,
        reuse=SimpleNamespace(memory=Memory(False), on=False),
        device=torch.device("cpu"),
        out=Path(),
        keys=SimpleNamespace(model=dict),
    )
    return load_model(job, windows())


def windows() -> Any:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    examples = SimpleNamespace(tokens=tokens)
    return SimpleNamespace(
        test=tokens, calibration=tokens, train=examples, validation=examples, task=None
    )


def test_validation_without_a_label_is_refused_before_the_model_is_loaded() -> None:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    unlabelled = Examples(tokens, torch.full_like(tokens, UNLABELLED))
    data = SimpleNamespace(
        seqlen=4,
        train=lambda tokenizer: Examples.of(tokens),
        validation=lambda tokenizer: unlabelled,
        task=lambda tokenizer: None,
        test=lambda tokenizer: tokens,
        calibration=lambda tokenizer, seed: tokens,
    )
    job: Any = SimpleNamespace(
        cfg=OmegaConf.create({"seed": 0, "from_run": None, "model": {"path": "here"}}),
        parts=SimpleNamespace(
            model=SimpleNamespace(tokenizer=lambda: None),
            data=data,
            method=method_of("masked_lora"),
            pruner=Wanda(variant=False),
            sparsity_schedule=SimpleNamespace(needs_calibration=False),
            evaluation={},
        ),
        reuse=SimpleNamespace(memory=Memory(False)),
        keys=SimpleNamespace(windows=lambda wanted: {}),
    )
    with pytest.raises(ValueError, match="have no labelled token to measure"):
        _windows(job)


def test_a_method_sees_the_model_unless_a_finished_run_is_measured() -> None:
    model, method = random_model("llama").to(torch.bfloat16), method_of("masked_full")
    with pytest.raises(ValueError, match=r"set model\.dtype=float32"):
        load(model, method=method)
    assert load(model, method=method, from_run="run") is model


def test_an_existing_support_is_held_to_the_pattern_unless_a_finished_run_is_measured() -> None:
    model, pattern = random_model("llama"), Pattern(2, 4)
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            score = linear.weight.abs()
            linear.weight.masked_fill_(lowest_per_row(score, score.shape[1] // 2), 0)
    parts = {"method": method_of("none"), "pruner": Existing(masks=None), "pattern": pattern}
    with pytest.raises(ValueError, match="pattern 2:4 does not hold"):
        load(model, **parts)
    assert load(model, **parts, from_run="run") is model


@pytest.mark.parametrize(
    ("count", "examples", "left"), [(2, 4, (2, 4)), (None, 1, (6, 1)), (3, None, (3, 6))]
)
def test_test_and_task_have_limits_of_their_own(
    count: int | None, examples: int | None, left: tuple[int, int]
) -> None:
    rows = torch.arange(12).view(6, 2)
    every = Examples.of(rows)
    cut = first_tested(Windows(rows, rows, every, every, every), count, examples)
    assert cut.task is not None
    assert (len(cut.test), len(cut.task)) == left
    assert len(cut.validation) == len(cut.calibration) == 6

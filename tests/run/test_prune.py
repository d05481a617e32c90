"""How a pruning ends that has no scores."""

from __future__ import annotations

import math

import pytest
from support.configs import compose
from support.families import random_model
from support.streaming import streamed
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.names import SAVED_NAMES
from sparsemend.blocks.walk import Calibration
from sparsemend.run.job import build
from sparsemend.run.prune import PruningRules
from sparsemend.sparse.pattern import Pattern

UP, SAVED = "model.layers.1.mlp.up_proj", "model.layers.1.ffn.w3"


def prune(model: PreTrainedModel, windows: Tensor, *overrides: str) -> None:
    cfg = compose("run", overrides)
    vars(model)[SAVED_NAMES] = {UP: SAVED}
    rules = PruningRules(
        pruner=build(cfg.pruner),
        schedule=build(cfg.sparsity_schedule),
        sparsity=0.5,
        pattern=Pattern(),
        rounding=cfg.rounding,
        statistics=cfg.statistics,
        true_sequential=cfg.true_sequential,
    )
    rules(model, Calibration((windows,)))


@pytest.mark.parametrize(
    "line",
    [
        *("pruner=wanda", "pruner=magnitude", "pruner=sparsegpt", "pruner=ria", "pruner=admm"),
        *("statistics=dense", "sparsity_schedule=owl", "sparsity_schedule=lamp"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(line: str, tokens: Tensor) -> None:
    model = random_model("llama")
    model.get_submodule(UP).weight.data[2, 3] = math.nan
    with pytest.raises(ValueError, match=rf"^{SAVED}\.weight holds NaN or infinity; give a model"):
        prune(model, tokens, line)


@pytest.mark.parametrize("line", ["statistics=exact", "statistics=dense"])
def test_a_linear_whose_finite_weights_have_no_scores_is_named(line: str, tokens: Tensor) -> None:
    model = random_model("llama")
    model.get_submodule(UP).weight.data[2] = 3e38  # times the norm of an input it overflows
    with pytest.raises(ValueError, match=rf"^{SAVED}: \d+ of \d+ scores are NaN or infinite"):
        prune(model, tokens, line)


@pytest.mark.parametrize("line", ["pruner=wanda", "pruner=magnitude"])
def test_a_linear_of_a_streamed_model_is_named(line: str, tokens: Tensor) -> None:
    model = random_model("llama")
    model.get_submodule(UP).weight.data[2, 3] = math.nan
    with pytest.raises(ValueError, match=rf"^{SAVED}: 1 of \d+ scores are NaN or infinite"):
        prune(streamed(model), tokens, line)

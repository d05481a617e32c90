"""The first weight that is not finite, by its saved name, in memory and in files."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from support.families import random_model
from support.streaming import streamed
from transformers import PreTrainedModel

from sparsemend.blocks.finite import first_not_finite
from sparsemend.blocks.names import SAVED_NAMES

UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("place", [lambda model: model, streamed], ids=["memory", "files"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_the_first_weight_that_is_not_finite_has_its_saved_name(
    place: Callable[[PreTrainedModel], PreTrainedModel], value: float
) -> None:
    model = random_model("llama")
    assert first_not_finite(model) is None
    model.get_submodule(UP).weight.data[2, 3] = value
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = value
    model = place(model)
    assert first_not_finite(model) == f"{UP}.weight"
    vars(model)[SAVED_NAMES] = {UP: "model.layers.1.ffn.w3"}
    assert first_not_finite(model) == "model.layers.1.ffn.w3.weight"
    model.get_input_embeddings().weight.data[0, 0] = value
    assert first_not_finite(model) == "model.embed_tokens.weight"

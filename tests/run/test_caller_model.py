"""Models of the caller that would not be what is pruned, repaired or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import random_model
from torch import nn
from transformers import PreTrainedModel

from sparsemend import api
from sparsemend.run.windows import Windows


class Wrapped(nn.Module):
    """As PEFT's: it forwards to a model, and is none of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def merge_and_unload(self) -> PreTrainedModel:
        return self.model


def with_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """What add_adapter of transformers leaves, which needs PEFT itself."""
    model._hf_peft_config_loaded = True
    return model


def hooked(register: str) -> Callable[[PreTrainedModel], PreTrainedModel]:
    def make(model: PreTrainedModel) -> PreTrainedModel:
        getattr(model.model.layers[1].mlp.down_proj, register)(lambda *_: None)
        return model

    return make


def compiled(part: Callable[[PreTrainedModel], nn.Module]) -> Callable[[PreTrainedModel], Any]:
    def make(model: PreTrainedModel) -> PreTrainedModel:
        part(model).compile()
        return model

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: "a/path", "this is a str and no model of transformers; give what"),
        (Wrapped, "this is a Wrapped; give what its merge_and_unload"),
        (with_adapter, "this LlamaForCausalLM carries an adapter of PEFT"),
        (torch.compile, r"compiled model \(OptimizedModule\); give model._orig_mod"),
        (compiled(lambda model: model), "the model is compiled"),
        (compiled(lambda model: model.model.layers[0]), "model.layers.0 is compiled"),
        (hooked("register_forward_hook"), "model.layers.1.mlp.down_proj has hooks"),
        (hooked("register_forward_pre_hook"), "model.layers.1.mlp.down_proj has hooks"),
        (hooked("register_full_backward_hook"), "model.layers.1.mlp.down_proj has hooks"),
    ],
)
def test_a_model_whose_linears_cannot_be_replaced_is_refused_as_it_is(
    make: Callable[[PreTrainedModel], Any], said: str
) -> None:
    model = random_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = make(model)
    for call in (api.prune, api.repair):
        arguments = (None,) if call is api.prune else ()
        with pytest.raises(ValueError, match=said):
            call(changed, *arguments, "method=none", pruner="magnitude", sparsity=0.5)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_hooks_elsewhere_stay_and_are_no_obstacle() -> None:
    model, calls = random_model("llama"), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append("block"))
    model.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    api.prune(model, None, pruner="magnitude", sparsity=0.5)
    calls.clear()
    model(input_ids=torch.arange(4)[None])
    assert calls == ["block", "head"]


def test_a_wrapper_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is a Wrapped"):
        api.export(Wrapped(random_model("llama")), tmp_path / "model")  # type: ignore[arg-type]


def test_a_model_without_a_head_has_no_perplexity() -> None:
    rows = torch.arange(12).view(2, 6)
    examples = api.Examples.of(rows)
    windows = Windows(rows, rows, examples, examples, None)
    with pytest.raises(ValueError, match=r"LlamaModel has no head .*AutoModelForCausalLM"):
        api.evaluate(random_model("llama").model, windows)

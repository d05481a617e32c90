"""save_pretrained of a model that was unfolded and pruned: a folder that its class loads."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.layouts import layout_model, prune_two_of_four_
from support.tiers import slow_but_for
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparsemend.layout.names import name_linears_
from sparsemend.layout.unfold import unfold_
from sparsemend.run.save import save_as_class_does_
from sparsemend.sparse.linear import SparseLinear, sparse_linears


def pruned(family: str) -> PreTrainedModel:
    model = layout_model(family)
    unfold_(model)
    name_linears_(model)
    save_as_class_does_(model)
    prune_two_of_four_(model)
    return model


@pytest.mark.parametrize("family", slow_but_for(["mixtral", "gpt_oss"], ["gpt_oss"]))
def test_a_pruned_model_saves_what_its_class_loads(
    family: str, tokens: Tensor, tmp_path: Path
) -> None:
    layout_model(family).save_pretrained(tmp_path / "dense")
    model = pruned(family)
    modules = [*model.modules()]
    model.save_pretrained(tmp_path / "pruned")
    assert [*map(id, model.modules())] == [*map(id, modules)]
    dense, saved = (load_file(tmp_path / n / "model.safetensors") for n in ("dense", "pruned"))
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in dense.items()}
    assert sum(int((tensor == 0).sum()) for tensor in saved.values()) >= sum(
        int((~linear.keep).sum()) for _, linear in sparse_linears(model)
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    with torch.no_grad():
        ours, theirs = (m(input_ids=tokens, use_cache=False).logits for m in (model, loaded))
    # its experts run in one grouped product; the order of its sums differs
    assert (ours - theirs).abs().max() <= 16 * torch.finfo(torch.float32).eps * ours.abs().max()


def test_what_is_saved_generates_with_a_cache(tmp_path: Path) -> None:
    """It is off in the model, as the package loads one."""
    model = pruned("gpt_oss")
    assert not model.config.use_cache
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"]
    assert not model.config.use_cache


def pickled(model: PreTrainedModel) -> PreTrainedModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other: PreTrainedModel = torch.load(file, weights_only=False)
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_saves_its_own_weights(
    copied: Callable[[PreTrainedModel], PreTrainedModel], tmp_path: Path
) -> None:
    model = pruned("gpt_oss")
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == names
    assert not any(weight.any() for weight in weights.values())


def test_what_would_write_something_else_is_refused(tmp_path: Path) -> None:
    model = pruned("mixtral")
    with pytest.raises(ValueError, match="state_dict of this model is not that of its class"):
        model.save_pretrained(tmp_path, state_dict=model.state_dict())

    class OpenAdapter(SparseLinear):
        holds_support = False

    linear = model.get_submodule("model.layers.1.mlp.experts.2.up_proj")
    assert isinstance(linear, SparseLinear)
    adapter = OpenAdapter(linear.weight, linear.bias, linear.keep)
    model.set_submodule("model.layers.1.mlp.experts.2.up_proj", adapter)
    with pytest.raises(ValueError, match=r"^model\.layers\.1\.block_sparse_moe\.experts\.2\.w3 "):
        model.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]

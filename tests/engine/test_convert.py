"""A pruned model with packed linears gives the logits and the text of the dense one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.families import random_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparsemend.blocks.find import prunable_linears
from sparsemend.engine.convert import pack_linear, pack_linears_
from sparsemend.engine.file import load_packed, save_packed
from sparsemend.engine.linear import PackedLinear
from sparsemend.sparse.linear import SparseLinear


@torch.no_grad()
def pruned(model: PreTrainedModel) -> PreTrainedModel:
    """`model` without gradients and with 70 % of the weights of its linears at zero."""
    for linear in prunable_linears(model).values():
        linear.weight *= torch.rand(linear.weight.shape) < 0.3
    return model.requires_grad_(False)


def text(model: PreTrainedModel, prompt: Tensor) -> Tensor:
    out = model.generate(
        prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=True
    )
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_logits_and_generated_text_are_those_of_the_masked_model(
    family: str, tokens: Tensor
) -> None:
    dense = pruned(random_model(family))
    packed = copy.deepcopy(dense)
    names = pack_linears_(packed, values="float32", least_sparsity=0.5)
    assert names == list(prunable_linears(dense))
    with torch.inference_mode():
        expected, logits = dense(tokens).logits, packed(tokens).logits
        # float32 sums in another order, through three blocks
        assert float((logits - expected).norm() / expected.norm()) < 1e-5
    assert torch.equal(text(packed, tokens[:1, :5]), text(dense, tokens[:1, :5]))


def test_bfloat16_logits_differ_by_roundings_alone(tokens: Tensor) -> None:
    dense = pruned(random_model("llama")).bfloat16()
    packed = copy.deepcopy(dense)
    pack_linears_(packed, values="bfloat16", least_sparsity=0.5)
    with torch.inference_mode():
        for x in (tokens, tokens[:1, :4]):  # expanded, and sparse
            exact = copy.deepcopy(dense).float()(x).logits
            apart = [float((m(x).logits - exact).norm() / exact.norm()) for m in (packed, dense)]
            assert apart[0] < 1.2 * apart[1]


def test_a_linear_below_the_asked_sparsity_stays_dense() -> None:
    model = pruned(random_model("llama"))
    linears = prunable_linears(model)
    first = next(iter(linears))
    with torch.no_grad():
        linears[first].weight.fill_(1)
    names = pack_linears_(model, values="float32", least_sparsity=0.5)
    assert names == list(linears)[1:]
    assert type(model.get_submodule(first)) is nn.Linear
    assert isinstance(model.get_submodule(names[0]), PackedLinear)


def test_a_model_without_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity of 0\.5 or more.*prune the model first"):
        pack_linears_(random_model("llama"), values="float32", least_sparsity=0.5)


def test_what_cannot_be_packed_is_named() -> None:
    model = pruned(random_model("llama"))
    name = "model.layers.1.self_attn.k_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{name}: 1 weights are not finite"):
        pack_linears_(model, values="float32", least_sparsity=0.5)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())  # none before it
    with pytest.raises(ValueError, match="Embedding is no linear"):
        pack_linear(nn.Embedding(3, 4), values="float32")


def test_a_sparse_linear_is_packed_on_its_support() -> None:
    keep = torch.rand(8, 40) < 0.5
    weight = torch.randn(8, 40) * (torch.rand(8, 40) < 0.5)  # kept weights that are zero
    sparse = SparseLinear(nn.Parameter(weight), None, keep)
    packed = pack_linear(sparse, values="float32")
    assert packed.packed.stored == int(keep.sum())
    assert packed.bias is None
    x = torch.randn(2, 40)
    assert torch.allclose(packed(x), sparse(x).detach(), atol=1e-5)


def test_gpt2_whose_linears_lie_transposed_is_packed(tokens: Tensor) -> None:
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **settings)).eval()
    for module in dense.modules():
        if isinstance(module, Conv1D):
            module.weight.data *= torch.rand(module.weight.shape) < 0.3
    packed = copy.deepcopy(dense)
    assert len(pack_linears_(packed, values="float32", least_sparsity=0.5)) == 8
    with torch.inference_mode():
        expected, logits = dense(tokens).logits, packed(tokens).logits
    assert float((logits - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("values", "width"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_a_file_gives_back_what_was_written_in_the_promised_size(
    tmp_path: Path, values: str, width: int
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(640, 256, dtype=torch.float32 if width == 4 else torch.bfloat16)
    with torch.no_grad():
        linear.weight *= torch.rand(256, 640) < 0.5
    packed = pack_linear(linear, values=values)
    path = tmp_path / "packed.safetensors"
    save_packed(path, {"q_proj": packed}, {})
    asked = 256 * 640 / 8 + width * packed.packed.stored
    assert asked <= path.stat().st_size <= 1.03 * asked + 4 * 256  # the bias
    (tmp_path / "other.safetensors").touch()
    norm = torch.ones(3)
    save_packed(path, {"q_proj": packed}, {"norm.weight": norm})
    linears, others = load_packed(path)
    assert torch.equal(others.pop("norm.weight"), norm)
    assert others == {}
    state = linears.pop("q_proj").state_dict()
    assert linears == {}
    assert sorted(state) == sorted(packed.state_dict())
    for name, tensor in packed.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a sparsemend-packed-1 file but None"):
        load_packed(path)
    path.write_text("no tensors")
    with pytest.raises(ValueError, match=f"{path}: "):
        load_packed(path)
    packed = pack_linear(nn.Linear(40, 8), values="float32")
    packed.values = packed.values[1:]
    save_packed(path, {"q_proj": packed}, {})
    with pytest.raises(ValueError, match="q_proj: the mask has 320 weights, and 319 values"):
        load_packed(path)
    with pytest.raises((FileNotFoundError, ValueError), match="nothing"):
        load_packed(tmp_path / "nothing")

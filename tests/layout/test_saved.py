"""Supports in the names and shapes of the tensors that save_pretrained writes, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.families import random_model
from support.layouts import LAYOUTS, layout_model, prune_two_of_four_
from support.tiers import slow_but_for
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import PermuteForRope, WeightConverter

from sparsemend.layout.saved import module_supports, saved_masks
from sparsemend.layout.unfold import unfold_
from sparsemend.run.export import export, save_supports, to_dense_
from sparsemend.sparse.mask_file import PackedMask, load_masks

FAMILIES = slow_but_for(LAYOUTS, ["mixtral", "gpt_oss", "gpt2"])


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_the_zeros_of_the_saved_tensors_and_read_back_as_supports(
    family: str, tokens: Tensor, tmp_path: Path
) -> None:
    layout_model(family).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    model.config.use_cache = False
    unfold_(model)
    supports = prune_two_of_four_(model)
    with torch.no_grad():
        wanted = model(input_ids=tokens, use_cache=False).logits
    masks = tmp_path / "masks.safetensors"
    save_supports(model, masks)
    read = module_supports(model, load_masks(masks))
    assert read.keys() == supports.keys()
    assert all(torch.equal(read[name], keep) for name, keep in supports.items())

    export(to_dense_(model), None, tmp_path / "model", masks=masks, card=None)
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == dense.keys()
    by_name = {n if n in saved else f"{n}.weight": k for n, k in load_masks(masks).items()}
    assert all(torch.equal(saved[name] != 0, keep) for name, keep in by_name.items())
    for name in saved.keys() - by_name.keys():
        assert torch.equal(saved[name], dense[name])
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = reloaded(input_ids=tokens, use_cache=False).logits
    # its experts run in one grouped product; the order of its sums differs
    assert (logits - wanted).abs().max() <= 16 * torch.finfo(torch.float32).eps * wanted.abs().max()


def masks_of(model: PreTrainedModel) -> dict[str, PackedMask]:
    """The supports of all blocks."""
    return {name: mask for part in saved_masks(model) for name, mask in part.masks.items()}


def test_bits_are_packed_along_the_inputs_wherever_they_lie(tmp_path: Path) -> None:
    model = layout_model("gpt_oss")
    unfold_(model)
    prune_two_of_four_(model)
    masks = masks_of(model)
    fused = masks["model.layers.0.mlp.experts.gate_up_proj"]
    assert (fused.shape, fused.input_axis, tuple(fused.bits.shape)) == ((4, 32, 96), 1, (4, 96, 4))
    query = masks["model.layers.0.self_attn.q_proj"]
    assert (query.shape, query.input_axis, tuple(query.bits.shape)) == ((32, 32), 1, (32, 4))
    groups = fused.bits.flatten().unsqueeze(1) >> torch.tensor([0, 4], dtype=torch.uint8)
    kept = sum((groups & 0b1111) >> bit & 1 for bit in range(4))
    assert (kept == 2).all()


def test_a_fused_tensor_of_which_a_part_is_dense_keeps_that_part_whole() -> None:
    model = layout_model("gpt_oss")
    unfold_(model)
    prune_two_of_four_(model)
    experts = "model.layers.0.mlp.experts"
    for linear in ("gate_proj", "up_proj", "down_proj"):
        model.set_submodule(f"{experts}.1.{linear}", nn.Linear(32, 48))
    model.set_submodule(f"{experts}.1.down_proj", nn.Linear(48, 32))
    model.set_submodule("model.layers.1.self_attn.o_proj", nn.Linear(32, 32))
    dense = [name for part in saved_masks(model) for name in part.dense or ()]
    assert dense == ["model.layers.1.self_attn.o_proj"]
    bits = masks_of(model)[f"{experts}.gate_up_proj"].bits
    assert [bool((expert == 255).all()) for expert in bits] == [False, True, False, False]


def test_a_support_follows_rows_that_saving_moves() -> None:
    """As where a family rotates halves in the model and pairs in the checkpoint."""
    model = random_model("llama")
    supports = prune_two_of_four_(model)
    model._weight_conversions = [
        WeightConverter(["q_proj.weight"], ["q_proj.weight"], operations=[PermuteForRope()])
    ]
    name = "model.layers.1.self_attn.q_proj"
    packed = masks_of(model)
    loaded = {n: _bits(mask.bits, mask.shape[-1]) for n, mask in packed.items()}
    keep = supports[name]
    assert torch.equal(loaded[name], keep.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32))
    assert not torch.equal(loaded[name], keep)
    assert torch.equal(module_supports(model, loaded)[name], keep)


def _bits(packed: Tensor, inputs: int) -> Tensor:
    bits = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.flatten(-2)[..., :inputs].bool()


def test_supports_by_linear_names_are_read_as_older_files_have_them() -> None:
    model = layout_model("mixtral")
    unfold_(model)
    supports = prune_two_of_four_(model)
    read = module_supports(model, supports)
    assert read.keys() == supports.keys()
    assert all(torch.equal(read[name], keep) for name, keep in supports.items())


def test_a_masks_file_of_other_shapes_is_refused_by_the_saved_name() -> None:
    model = layout_model("gpt2")
    unfold_(model)
    name = "transformer.h.0.attn.c_attn"
    with pytest.raises(ValueError, match=rf"gives {name}\.weight .* \(96, 32\).* \(32, 96\)"):
        module_supports(model, {name: torch.ones(96, 32, dtype=torch.bool)})

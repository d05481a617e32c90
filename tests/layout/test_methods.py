"""Pruners, schedules and methods on linears that were unfolded, through the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.layouts import layout_model, prune_two_of_four_
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparsemend import api
from sparsemend.layout.unfold import unfold_
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.mask_file import load_masks

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "olmoe", "granitemoe", "gpt2"]
WORK: dict[str, tuple[list[str], list[str]]] = {
    "dsnot": (["pruner=wanda"], ["method.max_cycles=3"]),
    "lors": (["pruner=wanda", "pattern='2:4'", "sparsity=0.5"], ["method.max_steps=2"]),
    "seft": (["pruner=sparsegpt"], ["method.max_steps=41"]),
    "masked_lora": (["sparsity_schedule=owl"], ["method.max_steps=2"]),
    "masked_full": (["pruner=magnitude"], ["method.max_steps=2"]),
    "reconstruct": (["pruner=ria"], ["method.windows_per_step=2", "method.epochs=1"]),
    "losa": (
        ["sparsity_schedule=atp", "sparsity_schedule.common_difference=0.02"],
        ["method.max_steps=10", "method.similarity_samples=4"],
    ),
}


def put_model(family: str, folder: Path) -> list[str]:
    """Save a model of a family; the overrides that load it."""
    layout_model(family).save_pretrained(folder)
    return ["model=local", f"model.path={folder}", "model.dtype=float32", "model.attention=eager"]


@pytest.mark.families
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", WORK)
def test_a_repaired_model_is_exported_in_the_layout_of_its_class(
    family: str, method: str, tmp_path: Path
) -> None:
    windows = torch.randint(3, 96, (16, 32), generator=torch.Generator().manual_seed(1))
    lines = put_model(family, tmp_path / "dense")
    pruning, repairing = WORK[method]
    model = api.load(*lines)[0]
    pruned = api.prune(model, windows, *pruning)
    repaired = api.repair(
        model,
        f"method={method}",
        *repairing,
        pruned=pruned,
        train=windows[:, :4].contiguous(),  # so short that experts are left out
        validation=windows[:2],
        calibration=windows,
        dense=lambda: api.load(*lines)[0],
    )
    wanted = logits(model, windows)
    folder = api.export(model, tmp_path / "model", repaired=repaired)
    saved, masks = load_file(folder / "model.safetensors"), load_masks(folder / "masks.safetensors")
    tensors = {name if name in saved else f"{name}.weight": keep for name, keep in masks.items()}
    assert not any(saved[name].masked_fill(keep, 0).any() for name, keep in tensors.items())
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert saved.keys() == dense.keys()
    assert all(torch.equal(saved[name], dense[name]) for name in saved.keys() - tensors.keys())
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # grouped experts and a transposed Conv1D sum in another order
    assert (logits(plain, windows) - wanted).abs().max() <= 3e-6 * wanted.abs().max()


@pytest.mark.parametrize("family", ["gpt_oss", "gpt2"])
def test_an_export_leaves_the_modules_of_the_model_as_they_were(
    family: str, tmp_path: Path
) -> None:
    model = layout_model(family)
    unfold_(model)
    prune_two_of_four_(model)
    modules, state = list(model.modules()), {n: t.clone() for n, t in model.state_dict().items()}
    api.export(model, tmp_path / "model")
    assert set(map(id, model.modules())) == set(map(id, modules))
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_a_model_of_ones_own_is_unfolded_and_its_export_pruned_on(tmp_path: Path) -> None:
    model = layout_model("mixtral")
    pruned = api.prune(model, None, "pruner=magnitude", "sparsity=0.5").report
    supports = {name: linear.keep for name, linear in sparse_linears(model)}
    assert len(supports) == 2 * (4 + 4 * 3)
    api.export(model, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert api.prune(again, None, "pruner=existing").report == pruned
    assert all(torch.equal(linear.keep, supports[n]) for n, linear in sparse_linears(again))


def logits(model: PreTrainedModel, windows: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=windows[:2], use_cache=False).logits

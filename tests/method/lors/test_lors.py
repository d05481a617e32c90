"""LoRS as a method: its modes in an optimizer, its settings, and repair of several models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.contracts import bench_for, logits, method_of, pruned_model
from support.layers import random, sparse_linear
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.lors.lors import Lors
from sparsemend.sparse.linear import SparseLinear, check_supports, sparse_linears

OUTPUTS, INPUTS, RANK = 12, 20, 3


def lors(**changes: Any) -> Lors:
    return Lors(**{**vars(method_of("lors")), **changes})


def layer_of(grad_mode: str) -> LorsLinear:
    """The scale is no power of two, so that dividing by it rounds."""
    settings = LorsSettings(3**0.5, grad_mode, 5, "float32", torch.float64)
    base = sparse_linear(OUTPUTS, INPUTS)
    layer = LorsLinear(base, random(RANK, INPUTS, seed=4), settings, derived=False)
    with torch.no_grad():
        layer.lora_b.copy_(random(OUTPUTS, RANK, seed=5))
    return layer


def trained(grad_mode: str, *, eps: float, clip: float | None = None, steps: int = 5) -> Tensor:
    """Effective weight after so many AdamW steps on a regression."""
    layer = layer_of(grad_mode)
    parameters = [layer.lora_a, layer.lora_b]
    optimizer = AdamW(parameters, lr=1e-2, eps=eps)
    x, wanted = random(30, INPUTS, seed=6), random(30, OUTPUTS, seed=7)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - wanted).square().mean().backward()
        if clip is not None:
            clip_grad_norm_(parameters, clip)
        optimizer.step()
    return layer.effective_weight().detach()


def test_released_and_ste_are_one_under_adamw_without_clipping() -> None:
    """Without eps AdamW does not see a constant factor; fp64 rounding of five steps is left."""
    torch.testing.assert_close(
        trained("released", eps=0), trained("ste", eps=0), rtol=1e-10, atol=1e-10
    )


def test_a_large_eps_tells_released_from_ste() -> None:
    assert not torch.allclose(
        trained("released", eps=1e-1), trained("ste", eps=1e-1), rtol=1e-4, atol=1e-4
    )


def test_clipping_tells_released_from_ste() -> None:
    """A threshold that the first steps of ste exceed and those of released do not."""
    norms = []
    for grad_mode in ("released", "ste"):
        layer = layer_of(grad_mode)
        x, wanted = random(30, INPUTS, seed=6), random(30, OUTPUTS, seed=7)
        (layer(x) - wanted).square().mean().backward()
        norms.append(clip_grad_norm_([layer.lora_a, layer.lora_b], 1e9).item())
    assert norms[1] == pytest.approx(3**0.5 * norms[0])
    between = (norms[0] + norms[1]) / 2
    one, other = (trained(mode, eps=0, clip=between) for mode in ("released", "ste"))
    assert not torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_the_usual_scale_is_the_root_of_the_rank(tmp_path: Path) -> None:
    method = method_of("lors")
    assert isinstance(method, Lors)
    settings = {"rank": 4, "alpha": 4.0, "init": "kaiming"}
    assert method.scale_rule == "alpha_over_sqrt_r"
    model = pruned_model()
    lors(**settings).attach(model, bench_for(tmp_path))
    assert {layer.scale for _, layer in sparse_linears(model)} == {2.0}
    model = pruned_model()
    lors(**settings, scale_rule="alpha_over_r").attach(model, bench_for(tmp_path))
    assert {layer.scale for _, layer in sparse_linears(model)} == {1.0}


@pytest.mark.parametrize("mask", ["stored", "derived"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_attaching_changes_no_logit(
    family: str, dtype: torch.dtype, mask: str, tmp_path: Path
) -> None:
    model = pruned_model(family=family).to(dtype)
    before = logits(model)
    lors(mask=mask).attach(model, bench_for(tmp_path))
    assert all(isinstance(layer, LorsLinear) for _, layer in sparse_linears(model))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_bf16_model_is_repaired_without_losing_a_zero(
    family: str, precision: str, tmp_path: Path
) -> None:
    model = pruned_model(family=family).to(torch.bfloat16)
    before = {name: linear.weight.clone() for name, linear in sparse_linears(model)}
    lors(precision=precision).repair(model, bench_for(tmp_path))
    check_supports(model)
    for _, linear in sparse_linears(model):
        assert type(linear) is SparseLinear
        assert linear.weight.dtype == torch.bfloat16
    assert any(not torch.equal(m.weight, before[n]) for n, m in sparse_linears(model))


def test_both_masks_train_to_the_same_bits(tmp_path: Path) -> None:
    found = []
    for mask in ("stored", "derived"):
        model = pruned_model()
        lors(mask=mask).repair(model, bench_for(tmp_path / mask))
        found.append({name: linear.weight for name, linear in sparse_linears(model)})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_activation_checkpointing_trains_to_the_same_bits(tmp_path: Path) -> None:
    found = []
    for on in (False, True):
        model = pruned_model()
        bench = replace(bench_for(tmp_path / str(on)), activation_checkpointing=on)
        lors().repair(model, bench)
        found.append({name: linear.weight for name, linear in sparse_linears(model)})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_rank_that_a_linear_cannot_have_is_refused_by_name() -> None:
    wanted = r"method\.rank=17 exceeds .* = 16 of model\.layers\.0\.self_attn\.k_proj"
    with pytest.raises(ValueError, match=wanted):
        lors(rank=17).check_model(pruned_model(), None)
    lors(rank=16).check_model(pruned_model(), None)


def with_kept_zeros() -> tuple[Any, str]:
    """A model with three kept weights of exactly zero in one linear, and its name."""
    model = pruned_model()
    name = "model.layers.1.mlp.up_proj"
    linear = model.get_submodule(name)
    rows, columns = linear.keep.nonzero()[:3].T
    with torch.no_grad():
        linear.weight[rows, columns] = 0
    return model, name


def test_a_derived_support_is_refused_where_kept_weights_are_zero(tmp_path: Path) -> None:
    model, name = with_kept_zeros()
    wanted = rf"support of {name} .* 3 kept weights are exactly 0 .* use method\.mask=stored"
    with pytest.raises(ValueError, match=wanted):
        lors(mask="derived").attach(model, bench_for(tmp_path))
    lors(mask="stored").attach(model, bench_for(tmp_path))


def test_a_derived_support_is_refused_before_any_work_on_a_pruned_checkpoint() -> None:
    model, name = with_kept_zeros()
    supports = {n: linear.keep for n, linear in sparse_linears(model)}
    with pytest.raises(ValueError, match=f"{name}.*3 kept weights"):
        lors(mask="derived").check_model(model, supports)
    lors(mask="derived").check_model(pruned_model(), supports=None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "grad_mode",
            "exactly",
            "grad_mode 'exactly' is not one of: ste, released, exact",
        ),
        ("mask", "none", "mask 'none' is not one of: stored, derived"),
        ("fuse_dtype", "bf16", "fuse_dtype 'bf16' is not one of: float32, weight"),
        ("init", "zero", "init 'zero' is not one of: grad_svd, kaiming"),
        ("init_svd", "full", "init_svd 'full' is not one of: randomized, exact"),
        ("scale_rule", "one", "scale_rule 'one' is not one of: alpha_over_r, alpha_over_sqrt_r"),
        ("rank", 0, "rank 0 is below 1"),
        ("alpha", 0.0, "alpha 0.0 is not above 0"),
        ("tile_rows", 0, "tile_rows 0 is below 1"),
        ("init_samples", 0, "init_samples 0 is below 1"),
        ("init_gamma", 0.0, "init_gamma 0.0 is not above 0"),
        ("init_iterations", -1, "init_iterations -1 is below 0"),
        ("init_linears_per_pass", 0, "init_linears_per_pass 0 is below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"method.{message}"):
        lors(**{name: value})

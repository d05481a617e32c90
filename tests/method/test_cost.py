"""FLOPs and bytes of one linear, as counted by hand from each method's equations.

T tokens, N = O I weights, rank r, R = r (O + I), e bytes per element; a multiply-add is two FLOPs,
element-wise work is none.  "Saved" is what lies between forward and backward beyond x and the
layer's own tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.layers import flops, random, saved_bytes, sparse_linear
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from sparsemend.method.adapter.lora import LoraLinear
from sparsemend.method.adapter.lors import LorsLinear
from sparsemend.method.adapter.lors_function import LorsSettings
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear, TwoGemmLinear
from sparsemend.method.perp import ScaleLoraLinear
from sparsemend.method.spp import SppLinear
from sparsemend.sparse.linear import SparseLinear

OUTPUTS, INPUTS, RANK, TOKENS, GROUPS = 32, 24, 3, 15, 4
N, R = OUTPUTS * INPUTS, RANK * (OUTPUTS + INPUTS)
TN, RN, TR = TOKENS * N, RANK * N, TOKENS * R


def start(rows: int = RANK) -> Tensor:
    return random(rows, INPUTS, seed=4, dtype=torch.float32)


def spp(form: str) -> Callable[[SparseLinear], SppLinear]:
    return lambda base: SppLinear(base, start(GROUPS), scale=2.0, form=form, dropout=0.0)


def lors(grad_mode: str, *, derived: bool = False) -> Callable[[SparseLinear], LorsLinear]:
    def make(base: SparseLinear) -> LorsLinear:
        settings = LorsSettings(2.0, grad_mode, 5, "float32", base.weight.dtype)
        return LorsLinear(base, start(), settings, derived=derived)

    return make


def trained(base: SparseLinear) -> SparseLinear:
    base.weight.requires_grad_(True)
    return base


MAKE: dict[str, Callable[[SparseLinear], nn.Module]] = {
    "lora": lambda base: LoraLinear(base, start(), 2.0, 0.0),
    "merge_first": lambda base: MaskedLoraLinear(base, start(), 2.0),
    "two_gemm": lambda base: TwoGemmLinear(base, start(), 2.0, 0.0),
    "spp plain": spp("plain"),
    "spp checkpointed": spp("checkpointed"),
    "spp group_loop": spp("group_loop"),
    "lors ste": lors("ste"),
    "lors released": lors("released"),
    "lors derived": lors("ste", derived=True),
    "lors exact": lors("exact"),
    "lors exact_tiled": lors("exact_tiled"),
    "masked_full": trained,
}
FORWARD = {
    "lora": 2 * TN + 2 * TR,
    "merge_first": 2 * TN + 2 * RN,
    "two_gemm": 4 * TN + 2 * RN,
    "spp plain": 4 * TN,
    "spp checkpointed": 4 * TN,
    "spp group_loop": 4 * TN,
    "lors ste": 2 * TN + 2 * RN,
    "lors released": 2 * TN + 2 * RN,
    "lors derived": 2 * TN + 2 * RN,
    "lors exact": 2 * TN + 2 * RN,
    "lors exact_tiled": 2 * TN + 2 * RN,
    "masked_full": 2 * TN,
}
BACKWARD = {
    "lora": 2 * TN + 4 * TR,
    "merge_first": 4 * TN + 6 * RN,
    "two_gemm": 6 * TN + 4 * RN,
    "spp plain": 6 * TN,
    # recomputing ends once the product's factor is back, before the product itself
    "spp checkpointed": 6 * TN,
    "spp group_loop": 4 * TN,
    "lors ste": 2 * TN + 2 * RN + 4 * TR,
    "lors released": 2 * TN + 2 * RN + 4 * TR,
    "lors derived": 2 * TN + 2 * RN + 4 * TR,
    "lors exact": 4 * TN + 6 * RN,
    "lors exact_tiled": 4 * TN + 6 * RN,
    "masked_full": 4 * TN,
}


def saved(name: str, element: int) -> int:
    """Bytes by the equations, for weights and activations of `element` bytes."""
    # fp32 factors are rounded to a bf16 input's dtype, and the rounded copies are kept
    rounded = 0 if element == 4 else element
    formula = {
        "lora": TOKENS * RANK * element + R * rounded,
        "two_gemm": N * (element + 1),
        "spp plain": 2 * N * element + OUTPUTS * rounded,
        "spp group_loop": TOKENS * OUTPUTS * element,
    }
    return formula.get(name, 0)


def layer_and_input(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    layer = MAKE[name](sparse_linear(OUTPUTS, INPUTS, dtype=dtype))
    return layer, random(3, TOKENS // 3, INPUTS, seed=9, dtype=dtype).requires_grad_()


def counted(name: str, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """(forward, backward) FLOPs."""
    layer, x = layer_and_input(name, dtype)
    result: list[Tensor] = []
    forward = flops(lambda: result.append(layer(x)))
    outer = torch.ones_like(result[0])
    return forward, flops(lambda: result[0].backward(outer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKE)
def test_flops_are_those_of_the_equations(name: str, dtype: torch.dtype) -> None:
    assert counted(name, dtype) == (FORWARD[name], BACKWARD[name])


@pytest.mark.parametrize(("dtype", "element"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("name", MAKE)
def test_saved_bytes_are_those_of_the_equations(
    name: str, dtype: torch.dtype, element: int
) -> None:
    layer, x = layer_and_input(name, dtype)
    assert saved_bytes(layer, x) == saved(name, element)


def test_checkpointing_that_recomputes_to_the_end_costs_the_released_twelve_tn() -> None:
    with set_checkpoint_early_stop(False):
        assert sum(counted("spp checkpointed")) == 12 * TN


def test_lors_costs_what_lora_costs_from_as_many_tokens_as_the_widths_harmonic_mean() -> None:
    """4TN + 4rN + 4TR against 4TN + 6TR: equal at T = 2N / (O + I)."""
    tokens = 2 * N / (OUTPUTS + INPUTS)

    def lead(tokens: float) -> float:  # of LoRA's FLOPs, from what was counted at TOKENS
        lora = sum(counted("lora")) / TOKENS * tokens
        fuses = 4 * RN
        return lora - ((sum(counted("lors ste")) - fuses) / TOKENS * tokens + fuses)

    assert lead(tokens) == pytest.approx(0, abs=1e-6 * TN)
    assert lead(tokens - 1) < 0 < lead(tokens + 1)


def test_scale_lora_keeps_its_merged_weight_only() -> None:
    base = sparse_linear(OUTPUTS, INPUTS, dtype=torch.bfloat16)
    layer = ScaleLoraLinear(base, RANK, 0.0, torch.Generator())
    x = random(TOKENS, INPUTS, seed=9, dtype=torch.bfloat16).requires_grad_()
    assert saved_bytes(layer, x) == 2 * N


def test_under_autocast_lors_keeps_no_rounded_weight_and_the_others_one() -> None:
    """Autocast rounds x and an fp32 weight for the base product's backward pass."""
    rounded_x = TOKENS * INPUTS * 2
    expected = {
        "lors ste": 0,
        "lora": 2 * N + rounded_x + TOKENS * RANK * 2 + R * 2,
        "spp group_loop": 2 * N + rounded_x + TOKENS * OUTPUTS * 2,
    }
    for name, size in expected.items():
        layer, x = layer_and_input(name, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert saved_bytes(layer, x) == size

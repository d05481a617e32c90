from pathlib import Path

import pytest
import torch
from contracts import bench_for, logits, method_of, pruned_model
from torch import Tensor, nn

from sparsemend.masks import SparseLinear, sparse_linears
from sparsemend.method.base import folded
from sparsemend.method.masked_lora import MaskedLora, MaskedLoraLinear

KEEP = torch.tensor([[True, False, True], [False, True, True]])


def adapter(scale: float = 2.0, dtype: torch.dtype = torch.float32) -> MaskedLoraLinear:
    weight = nn.Parameter(torch.tensor([[1.0, 9.0, 2.0], [9.0, 3.0, 4.0]], dtype=dtype))
    layer = MaskedLoraLinear(SparseLinear(weight, None, KEEP), torch.zeros(1, 3), scale)
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.lora_b.copy_(torch.tensor([[0.5], [-1.0]]))
    return layer


def test_the_effective_weight_is_the_formula_by_hand() -> None:
    # 2 * B A = [[1, 2, 3], [-2, -4, -6]], masked, plus the kept weights
    expected = torch.tensor([[2.0, 0.0, 5.0], [0.0, -1.0, -2.0]])
    assert torch.equal(adapter().effective_weight(), expected)


def test_gradients_are_those_of_the_masked_product() -> None:
    """dB = s (M * G) A^T and dA = s B^T (M * G) with G = D^T X (PERP, SQFT)."""
    layer = adapter().double()
    layer.lora_a.requires_grad_(True)
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outer = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (layer(inputs) * outer).sum().backward()
    masked = (outer.T @ inputs) * KEEP
    torch.testing.assert_close(layer.lora_b.grad, 2 * masked @ layer.lora_a.T)
    torch.testing.assert_close(layer.lora_a.grad, 2 * layer.lora_b.T @ masked)


def test_folding_a_bf16_layer_rounds_once_and_keeps_the_zeros() -> None:
    layer = adapter(dtype=torch.bfloat16)
    result = folded(layer)
    assert result.weight.dtype == torch.bfloat16
    assert torch.equal(result.weight, layer.effective_weight())
    assert not result.weight[~KEEP].any()


def test_moving_the_support_under_the_adapter_gives_the_weight_asked_for() -> None:
    layer = adapter()
    wanted = torch.tensor([[1.0, -1.0, 0.5], [2.0, 3.0, -4.0]])
    keep = ~KEEP
    layer.set_effective_(wanted, keep)
    torch.testing.assert_close(layer.effective_weight(), wanted * keep)
    assert not layer.effective_weight()[~keep].any()


def test_the_rank_bounds_what_is_trained(tmp_path: Path) -> None:
    method = method_of("masked_lora")
    assert isinstance(method, MaskedLora)
    model = pruned_model()
    method.attach(model, bench_for(tmp_path))
    expected = sum(2 * (m.in_features + m.out_features) for _, m in sparse_linears(model))
    assert sum(p.numel() for p in method.trainable(model)) == expected


def test_a_kept_weight_that_cancels_to_zero_stays_on_the_support() -> None:
    layer = adapter()
    with torch.no_grad():
        layer.weight[0, 0] = -1.0  # update there is +1
    result = folded(layer)
    assert result.weight[0, 0] == 0
    assert bool(result.keep[0, 0])


def test_a_rank_below_one_is_refused() -> None:
    settings = {**vars(method_of("masked_lora")), "rank": 0}
    with pytest.raises(ValueError, match=r"method\.rank 0 is below 1"):
        MaskedLora(**settings)


def test_adapters_are_gone_after_repair(tmp_path: Path) -> None:
    model = pruned_model()
    before: Tensor = logits(model)
    method_of("masked_lora").repair(model, bench_for(tmp_path))
    assert not any(isinstance(m, MaskedLoraLinear) for m in model.modules())
    assert not torch.equal(logits(model), before)

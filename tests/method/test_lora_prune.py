"""LoRA-Prune: trained dense, folded through the mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.contracts import bench_for, method_of, pruned_model
from torch import nn

from sparsemend.method.adapter.lora import LoraLinear
from sparsemend.method.lora_prune import LoraPrune, LoraPruneLinear
from sparsemend.sparse.linear import SparseLinear, sparse_linears

KEEP = torch.tensor([[True, False, True], [False, True, True]])


def lora_prune() -> LoraPrune:
    method = method_of("lora_prune")
    assert isinstance(method, LoraPrune)
    return method


class OneLinear(nn.Module):
    """As much of a model as folding looks at."""

    def __init__(self, linear: SparseLinear) -> None:
        super().__init__()
        self.linear = linear


def one_linear(dtype: torch.dtype = torch.float32) -> OneLinear:
    weight = nn.Parameter(torch.tensor([[1.0, 9.0, 2.0], [9.0, 3.0, 4.0]], dtype=dtype), False)
    bias = nn.Parameter(torch.tensor([0.5, -0.5], dtype=dtype), False)
    layer = LoraPruneLinear(SparseLinear(weight, bias, KEEP), torch.zeros(1, 3), 2.0, 0.0)
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.lora_b.copy_(torch.tensor([[0.5], [-1.0]]))
    return OneLinear(layer)


def test_the_fold_is_the_masked_sum_by_hand() -> None:
    model = one_linear()
    report = lora_prune().fold(model)
    # 2 B A = [[1, 2, 3], [-2, -4, -6]]
    assert model.linear.weight.tolist() == [[2.0, 0.0, 5.0], [0.0, -1.0, -2.0]]
    assert model.linear.bias.tolist() == [0.5, -0.5]
    assert torch.equal(model.linear.keep, KEEP)
    assert report == {"zeroed_by_fold": 0}


def test_training_sees_the_update_on_pruned_inputs_too() -> None:
    model = one_linear()
    # input 1 is pruned for output 0, where the update is 2
    assert model.linear(torch.tensor([0.0, 1.0, 0.0])).tolist() == [2.0 + 0.5, -1.0 - 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_validation_sees_the_folded_linear(dtype: torch.dtype) -> None:
    model, input = one_linear(dtype).eval(), torch.randn(4, 3).to(dtype)
    seen = model.linear(input)
    lora_prune().fold(model)
    assert torch.equal(seen, model.linear(input))


def test_a_bf16_sum_is_rounded_once() -> None:
    model = one_linear(torch.bfloat16)
    with torch.no_grad():
        model.linear.lora_b.mul_(1 + 2**-9)  # lost if the update alone were rounded
    exact = (model.linear.weight.double() + model.linear.update().double()) * KEEP
    lora_prune().fold(model)
    assert torch.equal(model.linear.weight, exact.bfloat16())


def test_a_kept_weight_that_cancels_is_counted_and_stays_kept() -> None:
    model = one_linear()
    with torch.no_grad():
        model.linear.weight[0, 0] = -1.0  # the update there is +1
    assert lora_prune().fold(model) == {"zeroed_by_fold": 1}
    assert model.linear.weight[0, 0] == 0
    assert torch.equal(model.linear.keep, KEEP)


def test_the_scale_is_alpha_over_rank(tmp_path: Path) -> None:
    method, model = lora_prune(), pruned_model()
    method.attach(model, bench_for(tmp_path))
    layers = [m for m in model.modules() if isinstance(m, LoraLinear)]
    assert {layer.scale for layer in layers} == {method.alpha / method.rank}


def test_repair_leaves_plain_sparse_linears_that_moved(tmp_path: Path) -> None:
    model = pruned_model()
    before = {name: linear.weight.clone() for name, linear in sparse_linears(model)}
    lora_prune().repair(model, bench_for(tmp_path))
    for name, linear in sparse_linears(model):
        assert type(linear) is SparseLinear
        assert not torch.equal(linear.weight, before[name])
        assert not linear.weight[~linear.keep].any()


def test_keep_best_follows_the_loss_after_pruning_back(tmp_path: Path) -> None:
    model = pruned_model()
    bench = bench_for(tmp_path)
    report = method_of("lora_prune", "method.learning_rate=0.3").repair(model, bench)
    tokens = bench.validation.tokens
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert report["validation/loss"] == pytest.approx(float(expected), rel=1e-6)
    assert "validation/loss/folded" not in report  # the same

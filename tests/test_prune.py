"""The one prune loop, and the budget of whole weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.method.adapter.low_rank import kaiming_start
from sparsemend.method.adapter.masked_lora import MaskedLoraLinear
from sparsemend.prune import prune, prune_block
from sparsemend.pruner.magnitude import Magnitude
from sparsemend.rounding import exact_zeros
from sparsemend.sparse.linear import sparse_linears
from sparsemend.sparse.pattern import Pattern

UNSTRUCTURED = Pattern.parse("unstructured")
ROWS = Magnitude(group="row")


def test_an_exact_budget_gives_what_is_missing_to_the_largest_remainders() -> None:
    # 2.5 + 1.75 + 2.75 = 7: whole parts 2 + 1 + 2, and two more for .75 and .75
    rates, sizes = {"a": 0.25, "b": 0.35, "c": 0.55}, {"a": 10, "b": 5, "c": 5}
    assert exact_zeros(rates, sizes) == {"a": 2, "b": 2, "c": 3}


def test_an_exact_budget_leaves_whole_products_alone() -> None:
    sizes = dict.fromkeys("abc", 100)
    assert exact_zeros(dict.fromkeys(sizes, 0.29), sizes) == dict.fromkeys(sizes, 29)


@pytest.mark.parametrize("target", [0.0, 0.1, 1 / 3, 0.7, 0.999])
def test_an_exact_budget_is_met_to_one_weight(target: float) -> None:
    sizes = {str(i): 4097 + 1013 * i for i in range(32)}
    rates = {n: min(1.0, max(0.0, target + 0.01 * (-1) ** int(n))) for n in sizes}
    wanted = sum(rates[n] * sizes[n] for n in sizes)
    zeros = exact_zeros(rates, sizes)
    assert abs(sum(zeros.values()) - wanted) <= 0.5 + 1e-6
    assert all(abs(zeros[n] - rates[n] * sizes[n]) < 1 for n in sizes)


def test_an_adapted_linear_is_pruned_under_its_factors(
    make_model: Callable[..., PreTrainedModel], tokens: Tensor
) -> None:
    """What is pruned is the effective weight; the factors and the module stay."""
    model = make_model("llama")
    uniform = dict.fromkeys(prunable_linears(model), 0.25)
    prune(model, Calibration(()), ROWS, uniform, UNSTRUCTURED)
    generator = torch.Generator().manual_seed(0)
    for name, linear in list(sparse_linears(model)):
        adapter = MaskedLoraLinear(linear, kaiming_start(2, linear.in_features, generator), 2.0)
        with torch.no_grad():
            adapter.lora_b.normal_(generator=generator)
        model.set_submodule(name, adapter)
    before = dict(sparse_linears(model))
    expected = {
        n: ROWS(m.effective_weight().detach(), None, 0.5, UNSTRUCTURED) for n, m in before.items()
    }
    factors = {n: (m.lora_a.clone(), m.lora_b.clone()) for n, m in before.items()}
    for visit in Calibration([tokens]).walk(model):
        prune_block(visit, ROWS, dict.fromkeys(before, 0.5), UNSTRUCTURED)
    for name, linear in sparse_linears(model):
        assert linear is before[name]
        assert torch.equal(linear.keep, expected[name].keep)
        # the base is the difference of the two in fp32: one rounding of values of order 10
        torch.testing.assert_close(
            linear.effective_weight(), expected[name].weight, atol=1e-5, rtol=0
        )
        assert torch.equal(linear.lora_a, factors[name][0])
        assert torch.equal(linear.lora_b, factors[name][1])

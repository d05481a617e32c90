import pytest
import torch
from oracles import schedule_oracle
from support.families import random_model
from support.schedules import schedule_of
from torch import Tensor

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.dlp import pooled_mean, pooled_median


def test_the_median_of_an_even_number_is_the_lower_one() -> None:
    scores = [torch.tensor([[1.0, 9.0]]), torch.tensor([[3.0], [4.0]])]
    assert pooled_median(scores) == 3.0
    assert pooled_mean(scores) == 4.25


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_rates_are_those_of_the_formula_on_a_dense_forward(
    family: str, reduction: str, tokens: Tensor
) -> None:
    model = random_model(family)
    scores = schedule_oracle.dense_scores(model, find_blocks(model)[1], tokens)
    expected = schedule_oracle.dlp_rates(scores, 0.15, 0.6, mean=reduction == "mean")
    found = schedule_of("dlp", reduction=reduction).allocate(
        model, Calibration(tokens.split(3)), 0.6, Pattern()
    )
    names = list(found)
    # scores in fp32 against float64, differences of them magnified by 1 / their span
    assert [found[n] for n in names[:: len(names) // 3]] == pytest.approx(expected, abs=2e-4)
    assert found.mean == pytest.approx(0.6, abs=1e-12)


def test_small_scores_make_a_block_denser_and_the_rates_span_twice_the_spread() -> None:
    rates = schedule_of("dlp").rates([1.0, 2.0, 1.5], [7, 7, 7], 0.7)  # type: ignore[attr-defined]
    # as in the published densities for 32 blocks at 0.7: span 0.3, mean density 0.3
    assert rates == pytest.approx([0.55, 0.85, 0.7], abs=1e-12)

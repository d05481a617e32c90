"""Wanda: hand-computed rows, exact counts, ties, N:M and the variant, against an oracle."""

from __future__ import annotations

import pytest
import torch
from oracles import pruner_oracle
from torch import Tensor

from sparsemend.blocks.statistics import InputNorm
from sparsemend.pruner.wanda import Wanda, lowest_by_share
from sparsemend.sparse.pattern import Pattern

UNSTRUCTURED = Pattern()


def norm_of(squared: Tensor) -> InputNorm:
    norm = InputNorm(squared.numel(), torch.device("cpu"))
    norm.squared.copy_(squared)
    norm.sequences = 1
    return norm


def random_case(rows: int, columns: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """A weight, and squared input norms of which one is zero."""
    generator = torch.Generator().manual_seed(seed)
    squared = torch.rand(columns, generator=generator) * 9
    squared[columns // 3] = 0
    return torch.randn(rows, columns, generator=generator), squared


def test_a_small_weight_on_a_loud_input_stays() -> None:
    # scores 1*4, 3*1, 2*1, 2*3: the two lowest are columns 1 and 2
    weight = torch.tensor([[1.0, -3.0, 2.0, -2.0]])
    statistic = norm_of(torch.tensor([16.0, 1.0, 1.0, 9.0]))
    pruned = Wanda(variant=False)(weight, statistic, 0.5, UNSTRUCTURED)
    assert pruned.keep.tolist() == [[True, False, False, True]]
    assert pruned.weight.tolist() == [[1.0, 0.0, 0.0, -2.0]]


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.7, 0.999, 1.0])
def test_every_row_loses_exactly_the_truncated_count(sparsity: float) -> None:
    weight, squared = random_case(7, 100, seed=1)
    keep = Wanda(variant=False)(weight, norm_of(squared), sparsity, UNSTRUCTURED).keep
    assert (~keep).sum(dim=1).tolist() == [int(100 * sparsity)] * 7


def test_ties_leave_from_the_lower_column() -> None:
    weight = torch.tensor([[2.0, 1.0, 1.0, 1.0, 1.0, 3.0]])
    keep = Wanda(variant=False)(weight, norm_of(torch.ones(6)), 0.5, UNSTRUCTURED).keep
    assert keep.tolist() == [[True, False, False, False, True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_masks_equal_the_oracle(dtype: torch.dtype, sparsity: float) -> None:
    weight, squared = random_case(32, 172, seed=2)
    weight = weight.to(dtype)
    pruned = Wanda(variant=False)(weight, norm_of(squared), sparsity, UNSTRUCTURED)
    keep = pruner_oracle.wanda(weight, squared, sparsity)
    assert torch.equal(pruned.keep, keep)
    assert pruned.weight.dtype == dtype
    assert torch.equal(pruned.weight, weight * keep)


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (4, 8), (1, 8), (7, 16)])
def test_n_m_masks_equal_the_oracle_also_with_a_short_last_group(kept: int, size: int) -> None:
    weight, squared = random_case(32, 172, seed=3)
    keep = Wanda(variant=False)(weight, norm_of(squared), 0.5, Pattern(kept, size)).keep
    assert torch.equal(keep, pruner_oracle.wanda_n_m(weight, squared, kept, size))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6])
def test_variant_equals_the_oracle(sparsity: float) -> None:
    weight, squared = random_case(32, 172, seed=4)
    keep = Wanda(variant=True)(weight, norm_of(squared), sparsity, UNSTRUCTURED).keep
    assert torch.equal(keep, pruner_oracle.wanda_variant(weight, squared, sparsity))
    assert abs((~keep).float().mean().item() - sparsity) <= 0.001


def test_variant_spares_a_row_whose_lowest_score_exceeds_its_share() -> None:
    # At alpha 0.4 one of the first row fits and its ties follow: 6 of 8 go.  At 0.2 its lowest,
    # a quarter of the row, no longer fits, and two of the second row meet the target.
    score = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 30.0, 40.0]])
    removed = lowest_by_share(score, 0.25)
    assert removed.tolist() == [[False] * 4, [True, True, False, False]]


def test_variant_has_no_n_m_pattern() -> None:
    with pytest.raises(ValueError, match="unstructured"):
        Wanda(variant=True)(torch.ones(1, 4), norm_of(torch.ones(4)), 0.5, Pattern(2, 4))


def test_inputs_that_are_not_finite_are_refused() -> None:
    statistic = norm_of(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Wanda(variant=False)(torch.ones(3, 2), statistic, 0.5, UNSTRUCTURED)


def test_a_missing_statistic_is_refused() -> None:
    with pytest.raises(TypeError, match="InputNorm"):
        Wanda(variant=False).score(torch.ones(3, 2), None)

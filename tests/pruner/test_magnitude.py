"""Magnitude: threshold rule, row rule, N:M, against a sorting oracle."""

from __future__ import annotations

import pytest
import torch
from oracles import pruner_oracle

from sparsemend.pruner.magnitude import Magnitude
from sparsemend.sparse.pattern import Pattern

UNSTRUCTURED = Pattern()


def test_layer_removes_everything_up_to_the_threshold() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]])
    # int(6 * 0.5) = 3, so the threshold is the fourth lowest magnitude: one more than half goes.
    keep = Magnitude(group="layer")(weight, None, 0.5, UNSTRUCTURED).keep
    assert keep.tolist() == [[False, False, False], [False, True, True]]


def test_layer_removes_all_ties_of_the_threshold() -> None:
    weight = torch.tensor([[1.0, 2.0, -2.0, 2.0, 3.0]])
    keep = Magnitude(group="layer")(weight, None, 0.2, UNSTRUCTURED).keep
    assert keep.tolist() == [[False, False, False, False, True]]


def test_row_removes_exactly_the_truncated_count_lower_columns_first() -> None:
    weight = torch.tensor([[1.0, 1.0, -1.0, 1.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    keep = Magnitude(group="row")(weight, None, 0.5, UNSTRUCTURED).keep
    assert keep.tolist() == [[False, False, True, True, True], [True, True, True, False, False]]


@pytest.mark.parametrize("group", ["layer", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
def test_masks_equal_the_oracle(group: str, dtype: torch.dtype, sparsity: float) -> None:
    weight = torch.randn(24, 44, generator=torch.Generator().manual_seed(3)).to(dtype)
    pruned = Magnitude(group=group)(weight, None, sparsity, UNSTRUCTURED)  # type: ignore[arg-type]
    keep = pruner_oracle.magnitude(weight, sparsity, group)  # type: ignore[arg-type]
    assert torch.equal(pruned.keep, keep)
    assert pruned.weight.dtype == dtype
    assert torch.equal(pruned.weight, weight * keep)


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (3, 8), (5, 16)])
def test_n_m_masks_equal_the_oracle_also_with_a_short_last_group(kept: int, size: int) -> None:
    weight = torch.randint(-4, 5, (24, 46), generator=torch.Generator().manual_seed(4)).float()
    keep = Magnitude(group="layer")(weight, None, 0.5, Pattern(kept, size)).keep
    assert torch.equal(keep, pruner_oracle.magnitude_n_m(weight, kept, size))


def test_a_mixed_pattern_takes_its_n_from_the_sparsity() -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(5))
    keep = Magnitude(group="layer")(weight, None, 0.75, Pattern.parse("mixed:8")).keep
    assert torch.equal(keep, pruner_oracle.magnitude_n_m(weight, 2, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = torch.tensor([[1.0, bad, 2.0]])
    with pytest.raises(ValueError, match="1 of 3 scores are NaN or infinite"):
        Magnitude(group="row")(weight, None, 0.5, UNSTRUCTURED)


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="one of: layer, row"):
        Magnitude(group="matrix")  # type: ignore[arg-type]

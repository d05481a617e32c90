"""RIA: a matrix by hand, dead channels, both groups and N:M against a weight-by-weight oracle."""

from __future__ import annotations

import pytest
import torch
from oracles import pruner_oracle
from support.tiers import slow_but_for
from torch import Tensor

from sparsemend.blocks.statistics import Hessian, InputNorm
from sparsemend.pruner.ria import RIA, relative_importance
from sparsemend.sparse.pattern import Pattern

UNSTRUCTURED = Pattern()


def ria(*, power: float = 0.5, group: str = "layer", shares_in: str = "float32") -> RIA:
    return RIA(power=power, group=group, shares_in=shares_in)  # type: ignore[arg-type]


def norm_of(squared: Tensor) -> InputNorm:
    norm = InputNorm(squared.numel(), torch.device("cpu"))
    norm.squared.copy_(squared)
    return norm


def random_case(rows: int, columns: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """A weight, and squared input norms of which one is zero."""
    generator = torch.Generator().manual_seed(seed)
    squared = torch.rand(columns, generator=generator) * 9
    squared[columns // 3] = 0
    return torch.randn(rows, columns, generator=generator), squared


def test_a_small_weight_stays_where_it_is_all_its_channel_has() -> None:
    # shares of the column 6/6.1 2/4, .1/6.1 2/4; of the row 6/8 2/8, .1/2.1 2/2.1
    weight = torch.tensor([[6.0, -2.0], [0.1, 2.0]])
    expected = [[6 / 6.1 + 6 / 8, 2 / 4 + 2 / 8], [0.1 / 6.1 + 0.1 / 2.1, 2 / 4 + 2 / 2.1]]
    # two quotients and a sum round once each
    torch.testing.assert_close(
        relative_importance(weight.abs()), torch.tensor(expected), rtol=4e-7, atol=0
    )
    # inputs of norm 16 and 4: the root of the norm multiplies by 4 and 2
    score = ria().score(weight, norm_of(torch.tensor([256.0, 16.0])))
    torch.testing.assert_close(
        score, torch.tensor(expected) * torch.tensor([4.0, 2.0]), rtol=6e-7, atol=0
    )


def test_power_zero_ignores_the_inputs() -> None:
    weight, squared = random_case(8, 12, seed=1)
    score = ria(power=0.0).score(weight, norm_of(squared))
    assert torch.equal(score, relative_importance(weight.abs()))


def test_a_dead_row_and_column_score_zero() -> None:
    weight, squared = random_case(6, 8, seed=2)
    weight[2], weight[:, 5] = 0, 0
    score = ria().score(weight, norm_of(squared))
    assert not score[2].any()
    assert not score[:, 5].any()
    assert score.isfinite().all()


@pytest.mark.parametrize(
    "dtype", slow_but_for([torch.float32, torch.bfloat16, torch.float16], [torch.float32])
)
@pytest.mark.parametrize("group", ["layer", "row"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 1.0])
def test_masks_equal_the_oracle(dtype: torch.dtype, group: str, sparsity: float) -> None:
    weight, squared = random_case(24, 44, seed=3)
    weight = weight.to(dtype)
    pruned = ria(group=group)(weight, norm_of(squared), sparsity, UNSTRUCTURED)
    keep = pruner_oracle.ria(weight, squared, sparsity, group)
    assert torch.equal(pruned.keep, keep)
    assert pruned.weight.dtype == dtype
    assert torch.equal(pruned.weight, weight * keep)


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (4, 8), (1, 8), (7, 16)])
def test_n_m_masks_equal_the_oracle_also_with_a_short_last_group(kept: int, size: int) -> None:
    weight, squared = random_case(24, 44, seed=4)
    keep = ria()(weight, norm_of(squared), 0.5, Pattern(kept, size)).keep
    assert torch.equal(keep, pruner_oracle.ria_n_m(weight, squared, kept, size))


def test_shares_in_half_precision_are_those_of_the_weight_dtype() -> None:
    # 1/3 in fp16 is 0.33325195; in fp32 it would be 0.33333334
    weight = torch.ones(1, 3, dtype=torch.float16)
    statistic = norm_of(torch.ones(3))
    score = ria(shares_in="weight_dtype").score(weight, statistic)
    assert score.dtype == torch.float32
    assert score.tolist() == [[float(torch.tensor(1 + 1 / 3, dtype=torch.float16))] * 3]
    assert score.tolist() != ria().score(weight, statistic).tolist()


@pytest.mark.parametrize("kept", [1, 2])
def test_a_given_weight_is_left_alone(kept: int) -> None:
    weight, squared = random_case(8, 12, seed=5)
    before = weight.clone()
    ria()(weight, norm_of(squared), 1 - kept / 4, Pattern(kept, 4))
    assert torch.equal(weight, before)


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        ria()(torch.ones(3, 2), norm_of(torch.tensor([1.0, torch.inf])), 0.5, UNSTRUCTURED)


def test_another_statistic_is_refused() -> None:
    with pytest.raises(TypeError, match="InputNorm, got Hessian"):
        ria().score(torch.ones(3, 2), Hessian(2, torch.device("cpu")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": "block"}, "group 'block' is not one of: layer, row"),
        ({"shares_in": "fp16"}, "shares_in 'fp16' is not one of"),
        ({"power": -1.0}, "power -1.0 is not at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ria(**settings)

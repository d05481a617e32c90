"""Statistics against an oracle that takes one sequence after the other; batching; the factor."""

from __future__ import annotations

import logging

import pytest
import torch
from oracles import statistics_oracle
from torch import Tensor

from sparsemend.blocks.statistics import Hessian, InputNorm, Moments, add_gram_, symmetrise_

CPU = torch.device("cpu")


def sequences(dtype: torch.dtype = torch.float32) -> Tensor:
    """Six sequences of 20 tokens and 13 inputs, of unlike size."""
    inputs = torch.randn(6, 20, 13, generator=torch.Generator().manual_seed(0))
    return (inputs * torch.arange(1, 7).view(6, 1, 1) + 0.5).to(dtype)


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_norm_equals_the_oracle_bit_for_bit(batch: int, dtype: torch.dtype) -> None:
    norm = InputNorm(13, CPU)
    for inputs in sequences(dtype).split(batch):
        norm.update(inputs)
    assert torch.equal(norm.squared, statistics_oracle.wanda_scaler_row(list(sequences(dtype))))


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_moments_equal_the_oracle(batch: int) -> None:
    moments = Moments(13, CPU)
    for inputs in sequences().split(batch):
        moments.update(inputs)
    total, squared, variance = statistics_oracle.dsnot_statistics(list(sequences()))
    assert torch.equal(moments.squared, squared)
    # Sums of 120 numbers in another order, fp32.
    torch.testing.assert_close(moments.total, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.variance, variance, rtol=1e-5, atol=0)


def test_variance_weighs_sequences_by_their_tokens() -> None:
    moments = Moments(1, CPU)
    moments.update(torch.tensor([[0.0], [2.0]]))  # variance 1 over 2 tokens
    moments.update(torch.tensor([[5.0], [5.0], [5.0], [5.0], [5.0], [5.0]]))  # 0 over 6
    assert moments.variance.item() == 0.25


def test_pooled_variance_is_that_of_all_tokens() -> None:
    moments = Moments(13, CPU, pooled=True)
    moments.update(sequences())
    expected = sequences().flatten(0, 1).var(dim=0, correction=0)
    # E[x^2] - E[x]^2 of numbers with a mean far below their spread, fp32.
    torch.testing.assert_close(moments.variance, expected, rtol=1e-5, atol=0)


def test_a_matrix_counts_as_one_sequence() -> None:
    norm, hessian = InputNorm(13, CPU), Hessian(13, CPU)
    for statistic in (norm, hessian):
        statistic.update(sequences()[0])
        assert statistic.sequences == 1


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_hessian_equals_the_oracle(batch: int) -> None:
    hessian = Hessian(13, CPU)
    for inputs in sequences().split(batch):
        hessian.update(inputs)
    expected = statistics_oracle.sparsegpt_hessian(list(sequences()))
    # Sums of 120 products in another order, fp32; entries reach 60.
    torch.testing.assert_close(symmetrise_(hessian.matrix), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("strips", [1, 3, 8, 20])
def test_the_lower_triangle_does_not_depend_on_the_strips(strips: int) -> None:
    tokens = sequences().flatten(0, 1)
    matrix = torch.ones(13, 13)
    add_gram_(matrix, tokens, decay=0.5, scale=0.1, strips=strips)
    expected = 0.5 + 0.1 * tokens.T @ tokens
    torch.testing.assert_close(matrix.tril(), expected.tril(), rtol=1e-5, atol=1e-3)


def test_symmetrising_spans_several_tiles() -> None:
    matrix = torch.randn(1100, 1100, generator=torch.Generator().manual_seed(1))
    expected = matrix.tril() + matrix.tril(-1).T
    assert torch.equal(symmetrise_(matrix), expected)


@pytest.mark.parametrize("columns", [1, 5, 13, 40])
def test_the_factor_is_that_of_the_damped_inverse(columns: int) -> None:
    inputs = torch.randn(64, columns, generator=torch.Generator().manual_seed(2))
    hessian = Hessian(columns, CPU)
    hessian.update(inputs)
    factor = hessian.inverse_factor(0.01)
    damped = symmetrise_(hessian.matrix.double())
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    upper = (factor.unit * factor.diagonal.unsqueeze(1)).double()
    assert torch.equal(upper, upper.triu())
    # fp32 rounding (6e-8) times the condition of the damped matrix (below 1e2) times its width.
    identity = torch.eye(columns, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper @ damped, identity, rtol=0, atol=2e-4)


def test_linears_of_one_input_share_one_factor() -> None:
    hessian = Hessian(13, CPU)
    hessian.update(sequences())
    first = hessian.inverse_factor(0.01)
    assert hessian.inverse_factor(0.01) is first
    assert hessian.inverse_factor(0.1) is not first


def test_new_inputs_make_a_new_factor() -> None:
    hessian = Hessian(13, CPU)
    hessian.update(sequences()[:3])
    first = hessian.inverse_factor(0.01)
    hessian.update(sequences()[3:])
    assert not torch.equal(hessian.inverse_factor(0.01).diagonal, first.diagonal)


def test_damping_is_relative_to_the_mean_after_dead_inputs_got_a_one() -> None:
    hessian = Hessian(2, CPU)
    hessian.update(torch.tensor([[3.0, 0.0]]))  # H = diag(18, 0)
    factor = hessian.inverse_factor(0.5)
    assert factor.dead.tolist() == [False, True]
    # damped to 18 + 0.5 * 9.5 and 1 + 0.5 * 9.5
    expected = torch.tensor([22.75, 5.75]).rsqrt()
    torch.testing.assert_close(factor.diagonal, expected, rtol=1e-6, atol=0)


def test_a_singular_hessian_is_damped_harder(caplog: pytest.LogCaptureFixture) -> None:
    hessian = Hessian(8, CPU)
    hessian.update(torch.ones(1, 8))
    with caplog.at_level(logging.WARNING):
        factor = hessian.inverse_factor(0.0)
    assert "not positive definite with damping 0 " in caplog.text
    # H = 2 everywhere, with 0.1 * 2 on the diagonal; the last column is eliminated first, so its
    # entry of diag(U)^-2 is H_77 itself.
    assert factor.diagonal[-1].item() ** -2 == pytest.approx(2.2, rel=1e-5)


def test_no_retry_lowers_the_damping_that_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    hessian = Hessian(2, CPU)
    hessian.matrix = torch.tensor([[1.0, 3.0], [3.0, 1.0]])  # definite from a damping of 2 on
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match=r"not positive definite with damping 1\.5 in fp64"),
    ):
        hessian.inverse_factor(1.5)
    assert "damping 0.1" not in caplog.text
    assert caplog.text.count("damping 1.5") == 2  # in fp32 and in fp64, neither twice


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    hessian = Hessian(2, CPU)
    hessian.update(torch.tensor([[torch.inf, 1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        hessian.inverse_factor(0.01)


def test_a_statistic_within_another_counts_and_moves_with_it() -> None:
    """total, squared and within: three vectors in fp32."""
    moments = Moments(10, CPU)
    assert moments.bytes == 3 * 4 * 10
    moments.to_(torch.device("meta"))
    assert {t.device.type for t in (moments.total, moments.within, moments.squared)} == {"meta"}

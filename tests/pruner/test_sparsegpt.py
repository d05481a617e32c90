"""SparseGPT: optimality of the update, supports, dead inputs, and an independent slow version."""

from __future__ import annotations

import pytest
import torch
from oracles import pruner_oracle
from torch import Tensor

from sparsemend.blocks.statistics import Hessian, symmetrise_
from sparsemend.pruner.sparsegpt import SparseGPT
from sparsemend.sparse.pattern import Pattern

UNSTRUCTURED = Pattern()
PATTERNS = [UNSTRUCTURED, Pattern(2, 4), Pattern(3, 8)]


def pruner(block_size: int = 128) -> SparseGPT:
    return SparseGPT(block_size=block_size, damping=0.01)


def observed(columns: int, *, tokens: int = 512, seed: int = 0) -> Hessian:
    """The Hessian of correlated random inputs, two sequences."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    hessian = Hessian(columns, torch.device("cpu"))
    hessian.update(torch.randn(2, tokens // 2, columns, generator=generator) @ mixing)
    return hessian


def random_weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(9))


def oracle(
    weight: Tensor, hessian: Hessian, sparsity: float, pattern: Pattern, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    full = symmetrise_(hessian.matrix.clone())
    if pattern.unstructured:
        return pruner_oracle.sparsegpt(weight, full, sparsity, block_size)
    return pruner_oracle.sparsegpt_n_m(weight, full, pattern.kept, pattern.group_size, block_size)


def test_two_inputs_by_hand() -> None:
    # H = [[2, 1], [1, 2]]: removing w_0 moves w_1 by w_0 * H_01 / H_11 = w_0 / 2, the least squares
    # answer.  1 of 2 goes in N:M 1:2, the score being w_0^2 * 3/2 against w_1^2 * 2.
    hessian = Hessian(2, torch.device("cpu"))
    hessian.matrix.copy_(torch.tensor([[2.0, 0.0], [1.0, 2.0]]))
    weight = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    pruned = SparseGPT(block_size=2, damping=0.0)(weight, hessian, 0.5, Pattern(1, 2))
    assert pruned.keep.tolist() == [[False, True], [True, False]]
    # One rounding each in 1.5 and in the factor.
    torch.testing.assert_close(
        pruned.weight, torch.tensor([[0.0, 1.5], [3.0, 0.0]]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("columns", "block_size"), [(64, 128), (64, 16), (44, 16), (60, 8)])
def test_supports_equal_the_oracle_on_narrow_linears(
    pattern: Pattern, columns: int, block_size: int
) -> None:
    weight, hessian = random_weight(48, columns), observed(columns)
    pruned = pruner(block_size)(weight, hessian, 0.6, pattern)
    expected, keep = oracle(weight, hessian, 0.6, pattern, block_size)
    assert torch.equal(pruned.keep, keep)
    # H has a condition below 1e3 once damped and fp32 rounds at 6e-8.
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("tokens", [64, 1024])
def test_supports_agree_with_the_oracle_over_several_blocks(pattern: Pattern, tokens: int) -> None:
    weight, hessian = random_weight(48, 256), observed(256, tokens=tokens)
    pruned = pruner()(weight, hessian, 0.6, pattern)
    expected, keep = oracle(weight, hessian, 0.6, pattern)
    # Rounding may flip near ties; nothing else may.
    same = pruned.keep == keep
    assert same.float().mean() >= 0.999
    rows = same.all(dim=1)
    torch.testing.assert_close(pruned.weight[rows], expected[rows], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_weights_off_the_support_are_zero_in_their_own_dtype(pattern: Pattern) -> None:
    weight = random_weight(32, 44).bfloat16()
    pruned = pruner(16)(weight, observed(44), 0.5, pattern)
    expected, keep = oracle(weight, observed(44), 0.5, pattern, 16)
    assert pruned.weight.dtype == torch.bfloat16
    assert not pruned.weight[~pruned.keep].any()
    assert torch.equal(pruned.keep, keep)
    # fp32 results that differ in the last bits may round to neighbouring bf16 numbers (2^-8).
    torch.testing.assert_close(pruned.weight, expected, rtol=2**-7, atol=1e-3)


def test_each_block_loses_one_more_than_the_truncated_count() -> None:
    keep = pruner(16)(random_weight(32, 40), observed(40), 0.6, UNSTRUCTURED).keep
    removed = [int((~keep[:, start : start + 16]).sum()) for start in (0, 16, 32)]
    assert removed == [int(512 * 0.6) + 1, int(512 * 0.6) + 1, int(256 * 0.6) + 1]


def test_a_short_last_group_loses_the_same_count() -> None:
    keep = pruner(8)(random_weight(8, 22), observed(22), 0.5, Pattern(1, 4)).keep
    assert keep[:, :20].reshape(-1, 4).sum(dim=1).unique().tolist() == [1]
    assert not keep[:, 20:].any()


def test_the_update_lowers_the_output_error() -> None:
    weight, hessian = random_weight(32, 64), observed(64)
    full = symmetrise_(hessian.matrix.clone())
    pruned = pruner()(weight, hessian, 0.5, UNSTRUCTURED)

    def error(candidate: Tensor) -> float:
        difference = candidate - weight
        return torch.einsum("ij,jk,ik->", difference, full, difference).item()

    assert error(pruned.weight) < 0.8 * error(weight * pruned.keep)


def test_dead_inputs_lose_their_weights_first() -> None:
    hessian = observed(16)
    hessian.matrix[5, :] = hessian.matrix[:, 5] = 0
    weight = random_weight(8, 16)
    weight[:, 5] = 100
    pruned = pruner()(weight, hessian, 0.3, UNSTRUCTURED)
    expected, keep = oracle(weight, hessian, 0.3, UNSTRUCTURED)
    assert not pruned.keep[:, 5].any()
    assert torch.equal(pruned.keep, keep)
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-3, atol=1e-4)


def test_dead_inputs_that_n_m_must_keep_are_zero() -> None:
    hessian = observed(16)
    hessian.matrix[4:8, :] = hessian.matrix[:, 4:8] = 0
    pruned = pruner()(random_weight(8, 16), hessian, 0.5, Pattern(2, 4))
    assert (pruned.keep[:, 4:8].sum(dim=1) == 2).all()
    assert not pruned.weight[:, 4:8].any()


def test_inputs_never_seen_do_not_crash() -> None:
    pruned = pruner()(random_weight(4, 8), Hessian(8, torch.device("cpu")), 0.5, UNSTRUCTURED)
    assert not pruned.weight.any()


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern.parse("mixed:4")], ids=str)
def test_sparsity_zero_changes_nothing(pattern: Pattern) -> None:
    weight = random_weight(4, 8)
    pruned = pruner()(weight, Hessian(8, torch.device("cpu")), 0.0, pattern)
    assert pruned.keep.all()
    assert torch.equal(pruned.weight, weight)


def test_sparsity_one_removes_everything() -> None:
    pruned = pruner()(random_weight(4, 8), observed(8), 1.0, UNSTRUCTURED)
    assert not pruned.keep.any()
    assert not pruned.weight.any()


def test_the_score_equals_the_oracle() -> None:
    weight, hessian = random_weight(8, 64), observed(64)
    expected = pruner_oracle.sparsegpt_score(weight, symmetrise_(hessian.matrix.clone()))
    # diag(U) passes through a factorisation of a matrix with condition below 1e3, in fp32.
    torch.testing.assert_close(pruner().score(weight, hessian), expected, rtol=1e-4, atol=0)


def test_the_weight_handed_in_is_left_alone() -> None:
    weight, hessian = random_weight(8, 16), observed(16)
    before, matrix = weight.clone(), hessian.matrix.clone()
    pruner()(weight, hessian, 0.5, UNSTRUCTURED)
    assert torch.equal(weight, before)
    assert torch.equal(hessian.matrix, matrix)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight = random_weight(4, 8)
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        pruner()(weight, observed(8), 0.5, UNSTRUCTURED)


def test_blocks_that_split_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match="block_size 6 is not a multiple of 4"):
        pruner(6)(random_weight(4, 8), observed(8), 0.5, Pattern(2, 4))

"""The oracles against tiny examples computed by hand; the arithmetic is in the comments."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from .atp_oracle import beta_bound, beta_grid, mixed_kept_counts, rates
from .dsnot_oracle import dsnot, dsnot_n_m
from .perplexity_oracle import perplexity
from .pruner_oracle import (
    magnitude,
    magnitude_n_m,
    sparsegpt,
    sparsegpt_n_m,
    sparsegpt_score,
    wanda,
    wanda_n_m,
    wanda_variant,
)
from .statistics_oracle import dsnot_statistics, sparsegpt_hessian, wanda_scaler_row

# A value of order one that went through a handful of fp32 roundings, each below 2^-24.
FEW_ROUNDINGS = 1e-6

# Column token sums 7, 1 and 0, 4; squared norms 25, 1 and 0, 8; variances 1/4, 1/4 and 0, 1.
FIRST = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
SECOND = torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])

SMALL = torch.tensor([[1.0, -4.0, 2.0, 8.0], [3.0, 5.0, -6.0, 7.0]])


def kept(*rows: str) -> Tensor:
    """Return the mask drawn with 1 for kept and . for removed."""
    return torch.tensor([[sign == "1" for sign in row] for row in rows])


def assert_close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


# --- statistics -------------------------------------------------------------------------------


def test_scaler_row_is_the_mean_squared_norm_over_sequences() -> None:
    # (25 + 0) / 2, (1 + 8) / 2
    assert_close(wanda_scaler_row([FIRST, SECOND]), torch.tensor([12.5, 4.5]))


def test_norm_is_rounded_before_it_is_squared() -> None:
    # fp32(sqrt 2) = 1.41421353816986; its square 1.99999993154 lies between 2 and 2 - 2^-23,
    # nearer to the latter.
    assert wanda_scaler_row([torch.ones(2, 1)]).item() == 2 - 2**-23
    assert dsnot_statistics([torch.ones(2, 1)])[1].item() == 2 - 2**-23


def test_half_precision_inputs_do_not_overflow_when_squared() -> None:
    # 300^2 = 90000 is above the largest fp16, 65504.
    assert wanda_scaler_row([torch.full((1, 1), 300.0, dtype=torch.float16)]).item() == 90000


def test_hessian_is_twice_the_mean_gram_matrix() -> None:
    # X^T X = [25 4; 4 1] and [0 0; 0 8]; 2 / N = 1.
    expected = torch.tensor([[25.0, 4.0], [4.0, 9.0]])
    hessian = sparsegpt_hessian([FIRST, SECOND])
    torch.testing.assert_close(hessian, expected, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def test_dsnot_weighs_sums_by_sequence_and_variances_by_token() -> None:
    s, q, v = dsnot_statistics([FIRST, SECOND])
    assert_close(s, torch.tensor([3.5, 2.5]))  # (7 + 0) / 2, (1 + 4) / 2
    assert_close(q, torch.tensor([12.5, 4.5]))
    # (2 * 1/4 + 4 * 0) / 6, (2 * 1/4 + 4 * 1) / 6
    assert_close(v, torch.tensor([0.5 / 6, 4.5 / 6]))


# --- magnitude --------------------------------------------------------------------------------


def test_layer_magnitude_removes_the_threshold_itself() -> None:
    # Magnitudes 1..8; index int(8 * 0.5) = 4 holds 5, so five weights leave.
    assert torch.equal(magnitude(SMALL, 0.5), kept("...1", "..11"))


def test_layer_magnitude_removes_all_ties_of_the_threshold() -> None:
    # Index int(4 * 0.25) = 1 holds 2, and so do two more weights.
    assert torch.equal(magnitude(torch.tensor([[2.0, 1.0, -2.0, 2.0]]), 0.25), kept("...."))


def test_layer_magnitude_is_guarded_at_both_ends() -> None:
    assert magnitude(SMALL, 0.0).all()
    assert not magnitude(SMALL, 1.0).any()


def test_row_magnitude_removes_an_exact_count_with_ties_to_the_lower_column() -> None:
    # int(4 * 0.7) = 2 per row.
    assert torch.equal(magnitude(SMALL, 0.7, group="row"), kept(".1.1", "..11"))
    assert torch.equal(magnitude(torch.ones(1, 4), 0.7, group="row"), kept("..11"))


def test_unknown_magnitude_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="group"):
        magnitude(SMALL, 0.5, group="block")  # type: ignore[arg-type]


def test_n_m_magnitude_keeps_n_of_every_m() -> None:
    assert torch.equal(magnitude_n_m(SMALL, 2, 4), kept(".1.1", "..11"))
    assert torch.equal(magnitude_n_m(SMALL, 1, 4), kept("...1", "...1"))
    assert torch.equal(magnitude_n_m(SMALL, 3, 4), kept(".111", ".111"))
    assert torch.equal(magnitude_n_m(torch.ones(1, 8), 2, 4), kept("..11..11"))


def test_short_last_group_loses_as_many_as_a_full_one() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0, 8.0]])
    assert torch.equal(magnitude_n_m(weight, 2, 4), kept("..11.."))
    assert torch.equal(magnitude_n_m(weight, 1, 4), kept("...1.."))  # three wanted, two there
    assert torch.equal(magnitude_n_m(weight, 3, 4), kept(".1111."))


def test_n_m_rejects_more_kept_than_there_are() -> None:
    with pytest.raises(ValueError, match="n_keep 5"):
        magnitude_n_m(SMALL, 5, 4)


# --- Wanda ------------------------------------------------------------------------------------

# sqrt = 8, 1, 4, 0.5, so the scores of SMALL are 8 4 8 4 and 24 5 24 3.5.
SCALER = torch.tensor([64.0, 1.0, 16.0, 0.25])


def test_wanda_compares_inside_rows_with_ties_to_the_lower_column() -> None:
    assert torch.equal(wanda(SMALL, SCALER, 0.5), kept("1.1.", "1.1."))
    assert torch.equal(wanda(SMALL, SCALER, 0.3), kept("1.11", "111."))  # int(1.2) = 1
    assert torch.equal(wanda(SMALL, SCALER, 0.75), kept("..1.", "..1."))


def test_wanda_is_guarded_at_both_ends() -> None:
    assert wanda(SMALL, SCALER, 0.0).all()
    assert not wanda(SMALL, SCALER, 1.0).any()


def test_wanda_n_m_uses_the_score() -> None:
    assert torch.equal(wanda_n_m(SMALL, SCALER, 2, 4), kept("1.1.", "1.1."))
    assert torch.equal(wanda_n_m(SMALL, SCALER, 1, 2), kept("1.1.", "1.1."))
    assert torch.equal(wanda_n_m(SMALL, SCALER, 1, 4), kept("..1.", "..1."))


def test_variant_bisects_the_share_of_the_cumulative_score() -> None:
    # Total 10, cumulative 1 3 6 10.  alpha 0.4: 4 admits two, sparsity 0.5.
    weight = torch.tensor([[4.0, -1.0, 3.0, 2.0]])
    assert torch.equal(wanda_variant(weight, torch.ones(4), 0.5), kept("1.1."))
    # alpha 0.4 is too much for 0.25; alpha 0.2: 2 admits one.
    assert torch.equal(wanda_variant(weight, torch.ones(4), 0.25), kept("1.11"))
    # 1.0 is out of reach: alpha stays below 0.8, and 8 admits three.
    assert torch.equal(wanda_variant(weight, torch.ones(4), 1.0), kept("1..."))


def test_variant_removes_a_different_number_from_each_row() -> None:
    # alpha 0.4.  Row 0: 1.6 of 4 admits one score of 1, and its three ties leave with it.
    # Row 1: 6.4 of 16 admits 1 3 6.  Together 7 of 8.
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 10.0]])
    assert torch.equal(wanda_variant(weight, torch.ones(4), 0.875), kept("....", "...1"))


def test_variant_spares_a_row_whose_smallest_score_exceeds_its_share() -> None:
    # alpha 0.4: 4.4 of 11 admits nothing; alpha 0.6: 6.6 admits the 5.
    weight = torch.tensor([[6.0, 5.0]])
    assert torch.equal(wanda_variant(weight, torch.ones(2), 0.0), kept("11"))
    assert torch.equal(wanda_variant(weight, torch.ones(2), 0.5), kept("1."))


# --- SparseGPT --------------------------------------------------------------------------------

# H = [2 1; 1 2]: H^-1 = [2 -1; -1 2] / 3, U_00^2 = 2/3, U_01 = (-1/3) / U_00,
# U_11^2 = 2/3 - (1/9) / (2/3) = 1/2.  Removing w_0 therefore adds w_0 (1/3) / (2/3) = w_0 / 2
# to w_1, as the OBS rule H_11^-1 H_10 w_0 says.
COUPLED = torch.tensor([[2.0, 1.0], [1.0, 2.0]])


def test_sparsegpt_compensates_on_the_columns_to_the_right() -> None:
    # Scores 1 / (2/3) and 100 / (1/2); index int(2 * 0.4) = 0: only w_0 leaves.
    weight, keep = sparsegpt(torch.tensor([[1.0, 10.0]]), COUPLED, 0.4, damping=0.0)
    assert torch.equal(keep, kept(".1"))
    torch.testing.assert_close(weight, torch.tensor([[0.0, 10.5]]), rtol=FEW_ROUNDINGS, atol=0)


def test_sparsegpt_scores_once_per_block_and_again_in_the_next() -> None:
    start = torch.tensor([[1.0, 1.0], [3.0, 1.2]])
    # One block: scores 1.5 2 / 13.5 2.88, index int(4 * 0.4) = 1 holds 2: row 0 leaves.
    weight, keep = sparsegpt(start, COUPLED, 0.4, damping=0.0)
    assert torch.equal(keep, kept("..", "11"))
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [3.0, 1.2]]))
    # Blocks of one: row 0 loses column 0, its column 1 becomes 1.5 and now beats 1.2.
    weight, keep = sparsegpt(start, COUPLED, 0.4, blocksize=1, damping=0.0)
    assert torch.equal(keep, kept(".1", "1."))
    torch.testing.assert_close(weight, torch.tensor([[0.0, 1.5], [3.0, 0.0]]))


def test_narrow_last_block_has_its_own_threshold() -> None:
    # H = 2 I, so scores are 2 w^2.  Blocks of two: index int(2 * 0.5) = 1 removes both of the
    # first block; the last block of one: index int(0.5) = 0 removes its only weight.
    weight, keep = sparsegpt(torch.tensor([[7.0, 8.0, 9.0]]), 2 * torch.eye(3), 0.5, blocksize=2)
    assert not keep.any()
    assert not weight.any()
    # At 0.4: index 0 in both blocks.
    _, keep = sparsegpt(torch.tensor([[7.0, 8.0, 9.0]]), 2 * torch.eye(3), 0.4, blocksize=2)
    assert torch.equal(keep, kept(".1."))


def test_sparsegpt_is_guarded_at_both_ends() -> None:
    start = torch.tensor([[1.0, 10.0]])
    weight, keep = sparsegpt(start, COUPLED, 0.0)
    assert keep.all()
    assert torch.equal(weight, start)
    weight, keep = sparsegpt(start, COUPLED, 1.0)
    assert not keep.any()
    assert not weight.any()


def test_damping_counts_dead_inputs_as_one() -> None:
    # diag (3, 0) -> (3, 1), mean 2, damping 0.5 adds 1 -> (4, 2).  Scores 1 * 4 and 0 * 2.
    hessian = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    score = sparsegpt_score(torch.tensor([[1.0, 7.0]]), hessian, damping=0.5)
    torch.testing.assert_close(score, torch.tensor([[4.0, 0.0]]), rtol=FEW_ROUNDINGS, atol=0)


def test_dead_input_leaves_first_and_dtype_stays() -> None:
    hessian = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    start = torch.tensor([[1.0, 7.0]], dtype=torch.float16)
    weight, keep = sparsegpt(start, hessian, 0.4)
    assert torch.equal(keep, kept("1."))
    assert weight.dtype == torch.float16
    assert weight.tolist() == [[1.0, 0.0]]


def test_sparsegpt_n_m_scores_a_group_after_the_columns_before_it() -> None:
    # Columns 1 and 2 are coupled as above, the others have H = 2.  Group 0: scores 25 * 2 and
    # 1 * 1.5, column 1 leaves and column 2 becomes 1.5.  Group 1: 1.5^2 * 2 = 4.5 against
    # 1.2^2 * 2 = 2.88, so column 3 leaves; before the compensation column 2 would have (2).
    hessian = 2 * torch.eye(4)
    hessian[1, 2] = hessian[2, 1] = 1
    start = torch.tensor([[5.0, 1.0, 1.0, 1.2]])
    for blocksize in (2, 128):
        weight, keep = sparsegpt_n_m(start, hessian, 1, 2, blocksize=blocksize, damping=0.0)
        assert torch.equal(keep, kept("1.1."))
        torch.testing.assert_close(weight, torch.tensor([[5.0, 0.0, 1.5, 0.0]]))


def test_sparsegpt_n_m_short_last_group_loses_all() -> None:
    weight, keep = sparsegpt_n_m(torch.arange(1.0, 7.0).reshape(1, 6), 2 * torch.eye(6), 2, 4)
    assert torch.equal(keep, kept("..11.."))
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0, 3.0, 4.0, 0.0, 0.0]]))


def test_sparsegpt_n_m_rejects_groups_across_blocks() -> None:
    with pytest.raises(ValueError, match="blocksize 6"):
        sparsegpt_n_m(SMALL, torch.eye(4), 2, 4, blocksize=6)


# --- DSnoT ------------------------------------------------------------------------------------

# Columns 0 1 2 are pruned at 0.5: E = 0.5 - 1 + 2 = 1.5.
# Grow order 1 | 3 4 5 | 0 2.  Prune order 4 (D < 0), then 5 3 (D > 0, strong to weak).
WEIGHT = torch.tensor([[0.5, -1.0, 2.0, 3.0, -4.0, 5.0]])
START = "...111"


def refine(weight: Tensor = WEIGHT, **options: object) -> Tensor:
    """Return the mask for s = q = v = 1 and the Wanda start, unless options say otherwise."""
    one = torch.ones(weight.shape[1])
    settings: dict = {
        "s": one,
        "q": one,
        "v": one,
        "initial_metric": weight.abs(),
        "sparsity": 0.5,
        "max_cycles": 1,
        "threshold": 0.1,
        "variance_power": 1.0,
        "same_sign": False,
        "mode": "clean",
    }
    return dsnot(weight, **(settings | options))


MODES = pytest.mark.parametrize("mode", ["clean", "faithful"])


@MODES
def test_swaps_drive_the_error_across_zero(mode: str) -> None:
    assert torch.equal(refine(max_cycles=0, mode=mode), kept(START))
    # E = 1.5 > 0: grow 2, prune 4.  E = 1.5 - 4 - 2 = -4.5.
    assert torch.equal(refine(max_cycles=1, mode=mode), kept("..11.1"))
    # E < 0: grow 1, prune 3.  E = -4.5 + 3 + 1 = -0.5.
    assert torch.equal(refine(max_cycles=2, mode=mode), kept(".11..1"))


def test_clean_row_stops_when_the_next_column_was_kept_at_first() -> None:
    # E = -0.5: the left end of the grow order is now column 3, kept at the start.
    assert torch.equal(refine(max_cycles=50), kept(".11..1"))


def test_faithful_row_runs_on_until_a_list_ends() -> None:
    # E = -0.5: grow 3, prune 5.  E = -0.5 + 5 - 3 = 1.5.
    assert torch.equal(refine(max_cycles=3, mode="faithful"), kept(".111.."))
    # E = 1.5: grow 0, prune 5 again (the row loses a zero).  E = 1.5 + 5 - 0.5 = 6.
    assert torch.equal(refine(max_cycles=4, mode="faithful"), kept("1111.."))
    # E = 6: grow 5, prune 3.  E = 6 + 3 - 5 = 4.
    assert torch.equal(refine(max_cycles=5, mode="faithful"), kept("111..1"))
    # E = 4: the prune order has no fourth column.
    assert torch.equal(refine(max_cycles=50, mode="faithful"), kept("111..1"))


@MODES
def test_same_sign_rule_rejects_a_swap_that_turns_the_error(mode: str) -> None:
    assert torch.equal(refine(max_cycles=9, same_sign=True, mode=mode), kept(START))


@MODES
def test_small_error_stops_the_row(mode: str) -> None:
    assert torch.equal(refine(threshold=2.0, max_cycles=9, mode=mode), kept(START))
    # 1.5 and 4.5 exceed 1, 0.5 does not.
    assert torch.equal(refine(threshold=1.0, max_cycles=9, mode=mode), kept(".11..1"))


def test_faithful_stopped_row_writes_while_another_is_active() -> None:
    # Row 1: E = 0.05 - 0.03 + 0.02 = 0.04 stops at once.  Grow order 1 | 3 4 5 | 2 0 from the
    # right, prune order 4 5 3 from the left.  Cycles 1 and 2 take (0, 4), (2, 5): no effect.
    # Cycle 3 takes (5, 3): column 5 is pruned without any revival.
    weight = torch.cat([WEIGHT, torch.tensor([[0.05, -0.03, 0.02, 3.0, -4.0, 5.0]])])
    assert torch.equal(refine(weight, max_cycles=2, mode="faithful")[1:], kept(START))
    assert torch.equal(refine(weight, max_cycles=3, mode="faithful")[1:], kept("...11."))
    # Cycle 4 finds no fourth column to prune.
    assert torch.equal(refine(weight, max_cycles=50, mode="faithful")[1:], kept("...11."))
    assert torch.equal(refine(weight, max_cycles=50, mode="clean")[1:], kept(START))
    # Alone the row ends the loop.
    assert torch.equal(refine(weight[1:], max_cycles=50, mode="faithful"), kept(START))


@MODES
def test_weakest_kept_column_stands_in_for_a_zero_contribution(mode: str) -> None:
    # D_4 = 0: the prune order is 3 (for column 4), then 5 3.
    s = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    # E = 1.5: grow 2, prune 3.  E = 1.5 + 3 - 2 = 2.5, the wrong way, which nothing tests.
    assert torch.equal(refine(s=s, max_cycles=1, mode=mode), kept("..1.11"))
    # E = 2.5: grow 0, prune 5.
    assert torch.equal(refine(s=s, max_cycles=2, mode=mode), kept("1.1.1."))


def test_clean_row_stops_when_the_stand_in_is_pruned_already() -> None:
    # D_4 = D_5 = 0: the prune order is 3 (for 4), 3 (for 5), 3.
    # Grow 2, prune 3: E = 2.5.  Grow 0, prune 3 again: clean stops, faithful loses a zero.
    s = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert torch.equal(refine(s=s, max_cycles=2), kept("..1.11"))
    assert torch.equal(refine(s=s, max_cycles=2, mode="faithful"), kept("1.1.11"))


def test_clean_row_stops_at_a_pruned_column_without_contribution() -> None:
    # D_0 = 0, pruned 0 1, E = -1, grow order 1 0 2 3, prune order 2 3.
    # Grow 1, prune 3: E = -1 - 5 + 1 = -5.  Column 0 is pruned still, but D_0 has no sign.
    weight = torch.tensor([[0.5, -1.0, -4.0, -5.0]])
    options = {"s": torch.tensor([0.0, 1.0, 1.0, 1.0]), "max_cycles": 9}
    metric = torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    assert torch.equal(refine(weight, initial_metric=metric, **options), kept(".11."))
    # 2:4: grow 1, prune 2: E = -1 - 4 + 1 = -4.
    assert torch.equal(refine_n_m(weight, initial_metric=metric, **options), kept(".1.1"))


@MODES
def test_growing_wins_where_one_column_is_grown_and_pruned(mode: str) -> None:
    # Pruned 0, E = 0.5; grow order 1 2 3 | 0, prune order 1 3 2.  Grow 0, prune 1: E = 9.
    # Then column 3 on both sides: clean stops, faithful prunes and revives it.
    weight = torch.tensor([[0.5, 9.0, 2.0, 5.0]])
    assert torch.equal(refine(weight, sparsity=0.25, max_cycles=2, mode=mode), kept("1.11"))


@MODES
def test_grow_order_divides_by_the_variance(mode: str) -> None:
    # Column 0 ranks 0.5 / 0.1 = 5 above 2 at power 1, but 0.5 below 2 at power 0.
    v = torch.tensor([0.1, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert torch.equal(refine(v=v, mode=mode), kept("1..1.1"))
    assert torch.equal(refine(v=v, variance_power=0.0, mode=mode), kept("..11.1"))


@MODES
def test_prune_order_is_wandas_whatever_the_start(mode: str) -> None:
    # q doubles twice column 3: Wanda 12 against 5 for column 5.  Prune order 4, then 3 5.
    # Cycle 1: grow 2, prune 4; cycle 2: grow 1, prune 5 (3 with q = 1).
    q = torch.tensor([1.0, 1.0, 1.0, 16.0, 1.0, 1.0])
    assert torch.equal(refine(q=q, max_cycles=2, mode=mode), kept(".111.."))


@MODES
def test_initial_metric_alone_decides_the_first_mask(mode: str) -> None:
    metric = torch.tensor([[2.0, 1.0, 1.0, 0.0, 1.0, 9.0]])
    # int(6 * 0.6) = 3: column 3, then the lower two of the ties, columns 1 and 2.
    mask = refine(initial_metric=metric, sparsity=0.6, max_cycles=0, mode=mode)
    assert torch.equal(mask, kept("1...11"))


def test_constant_input_ranks_first_in_faithful_and_is_never_grown_in_clean() -> None:
    # v_2 = 0.  Faithful: 2 / 0 = inf, grow 2 and prune 4.
    v = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    assert torch.equal(refine(v=v, mode="faithful"), kept("..11.1"))
    # Clean: grow order 1 | 2 3 4 5 | 0, but E = 1.5 as ever: grow 0, prune 4, E = -3.
    assert torch.equal(refine(v=v), kept("1..1.1"))
    # E = -3: grow 1, prune 3, E = 1; then column 5 was kept at the start.
    assert torch.equal(refine(v=v, max_cycles=9), kept("11...1"))


def test_clean_row_stops_at_a_constant_input_of_the_right_sign() -> None:
    # E = -1 - 2 + 0.5 = -2.5, v_0 = 0: grow order 1 | 0 3 4 5 | 2.  Grow 1, prune 3: E = 2.5.
    # Grow 2, prune 4: E = -2.  Column 0 is next, pruned, D < 0, but without variance.
    weight = torch.tensor([[-1.0, -2.0, 0.5, 3.0, -4.0, 5.0]])
    v = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert torch.equal(refine(weight, v=v, max_cycles=9), kept(".11..1"))


def test_constant_kept_input_costs_a_faithful_row_a_weight() -> None:
    # v_3 = 0: 0 / 0 sorts last, so 3 is "grown" though kept, and 4 is pruned.
    v = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert torch.equal(refine(v=v, mode="faithful"), kept("...1.1"))
    assert torch.equal(refine(v=v), kept("..11.1"))


def random_statistics(columns: int) -> dict[str, Tensor]:
    """Return s of both signs and positive q, v."""
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(columns, generator=generator)
    q = torch.rand(columns, generator=generator) + 0.1
    v = torch.rand(columns, generator=generator) + 0.1
    return {"s": s, "q": q, "v": v}


def test_modes_agree_where_no_sign_class_runs_out() -> None:
    # 64 columns at 0.5: about 16 columns in each of the four classes, four cycles.
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    settings = random_statistics(64) | {"max_cycles": 4}
    clean = refine(weight, **settings)
    assert torch.equal(clean, refine(weight, mode="faithful", **settings))
    assert (clean.sum(dim=1) == 32).all()
    assert not torch.equal(clean, refine(weight, **(settings | {"max_cycles": 0})))

    clean = refine_n_m(weight, **settings)
    assert torch.equal(clean, refine_n_m(weight, mode="faithful", **settings))
    assert (clean.reshape(8, 16, 4).sum(dim=2) == 2).all()
    assert not torch.equal(clean, refine_n_m(weight, **(settings | {"max_cycles": 0})))


def test_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="mode"):
        refine(mode="fast")


# Groups of four keep 2 3 and 5 7; pruned D 0.5 -1 | 2 1.5, E = 3.
# Grow order 1 | 2 3 5 7 | 0 6 4.
GROUPED = torch.tensor([[0.5, -1.0, 3.0, -4.0, 2.0, 6.0, 1.5, -7.0]])


def refine_n_m(weight: Tensor, n_keep: int = 2, m: int = 4, **options: object) -> Tensor:
    """Return the N:M mask for s = q = v = 1 and the Wanda start, unless options say otherwise."""
    one = torch.ones(weight.shape[1])
    settings: dict = {
        "s": one,
        "q": one,
        "v": one,
        "initial_metric": weight.abs(),
        "max_cycles": 1,
        "threshold": 0.1,
        "variance_power": 1.0,
        "mode": "clean",
    }
    return dsnot_n_m(weight, n_keep=n_keep, m=m, **(settings | options))


@MODES
def test_n_m_swaps_inside_the_group_with_the_sign_rule_on(mode: str) -> None:
    assert torch.equal(refine_n_m(GROUPED, max_cycles=0, mode=mode), kept("..11.1.1"))
    # E = 3: grow 4, prune 5 (weakest of its group).  E = 3 + 6 - 2 = 7.
    assert torch.equal(refine_n_m(GROUPED, mode=mode), kept("..111..1"))
    # E = 7: grow 6, prune 7.  E = 7 - 7 - 1.5 turns negative: rejected.
    assert torch.equal(refine_n_m(GROUPED, max_cycles=50, mode=mode), kept("..111..1"))


@MODES
def test_n_m_pruning_follows_the_initial_metric(mode: str) -> None:
    # The metric makes 7 weaker than 5: grow 4, prune 7 would give 3 - 7 - 2 < 0: rejected.
    metric = GROUPED.abs().clone()
    metric[0, 7] = 5.5
    assert torch.equal(
        refine_n_m(GROUPED, initial_metric=metric, max_cycles=9, mode=mode), kept("..11.1.1")
    )


def test_n_m_faithful_row_breaks_its_group_where_clean_stops() -> None:
    # Pruned 0 1, E = 3, grow order 2 3 | 0 1.  Grow 1, prune 2: E = 3 + 10 - 2 = 11.
    # Grow 0, prune 3: E = 11 + 20 - 1 = 30.
    weight = torch.tensor([[1.0, 2.0, 10.0, 20.0]])
    assert torch.equal(refine_n_m(weight, max_cycles=2, mode="faithful"), kept("11.."))
    assert torch.equal(refine_n_m(weight, max_cycles=50), kept("11.."))
    # Nothing finite is left: grow 3, prune 0: E = 30 + 1 - 20 = 11.
    assert torch.equal(refine_n_m(weight, max_cycles=3, mode="faithful"), kept(".1.1"))
    # Grow 2, prune 0 once more: E = 11 + 1 - 10 = 2, three are kept; then the order ends.
    assert torch.equal(refine_n_m(weight, max_cycles=50, mode="faithful"), kept(".111"))


def test_n_m_clean_row_stops_when_its_group_has_none_left_to_prune() -> None:
    # 1:4 keeps 3; E = 1 + 2 + 4 = 7.  Grow 2, prune 3: E = 7 + 20 - 4 = 23.  Grow 1: all gone.
    weight = torch.tensor([[1.0, 2.0, 4.0, 20.0]])
    assert torch.equal(refine_n_m(weight, n_keep=1, max_cycles=50), kept("..1."))


def test_n_m_clean_row_stops_when_the_next_column_was_kept_at_first() -> None:
    # Pruned 0 1 | 4 5, E = -1.5 + 2 = 0.5, grow order 0 1 4 | 2 3 6 7 | 5.
    # Grow 5, prune 7: E = 0.5 + 6 - 2 = 4.5.  Column 7 is next: pruned now, not at the start,
    # though column 6 is there to be pruned for it.
    weight = torch.tensor([[-0.5, -0.5, 4.0, 4.0, -0.5, 2.0, 5.0, 6.0]])
    metric = torch.tensor([[0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 3.0, 2.0]])
    mask = refine_n_m(weight, initial_metric=metric, max_cycles=9)
    assert torch.equal(mask, kept("..11.11."))
    # Faithful swaps them: E = 4.5 + 5 - 6 = 3.5.
    mask = refine_n_m(weight, initial_metric=metric, max_cycles=2, mode="faithful")
    assert torch.equal(mask, kept("..11.1.1"))


@MODES
def test_n_m_short_last_group_starts_empty(mode: str) -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert torch.equal(refine_n_m(weight, max_cycles=0, mode=mode), kept("..11.."))


# --- ATP --------------------------------------------------------------------------------------


def test_rates_rise_by_beta_around_the_mean() -> None:
    # First 0.5 - 0.25 * 3 / 2 = 0.125; every term is exact in binary.
    assert rates(0.5, 0.25, 4) == [0.125, 0.375, 0.625, 0.875]
    assert rates(0.7, 0.0, 3) == [0.7, 0.7, 0.7]
    assert rates(0.7, 0.5, 1) == [0.7]


def test_rates_multiply_instead_of_accumulating() -> None:
    # first = 0.45 - 0.15 = 0.3.  fp64(3 * 0.1) is above 0.3, so the product gives 0.6000...01;
    # the sums go 0.4, 0.5, 0.6.
    assert rates(0.45, 0.1, 4)[3] == 0.6000000000000001


def test_bound_and_its_rejection() -> None:
    assert beta_bound(0.5, 5) == 0.25
    assert beta_bound(0.7, 16) == 0.04000000000000001  # so that 0.04 is legal
    assert rates(0.7, 0.04, 16)[-1] == pytest.approx(1.0)
    for beta in (0.3, -0.3):
        with pytest.raises(ValueError, match="beta"):
            rates(0.5, beta, 5)
    assert rates(0.5, -0.25, 5) == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("blocks", "counts"),
    [
        (12, (45, 36, 27, 18)),
        (16, (33, 26, 20, 13)),
        (24, (21, 17, 13, 8)),
        (28, (18, 14, 11, 7)),
        (32, (16, 12, 9, 6)),
        (40, (12, 10, 7, 5)),
        (60, (8, 6, 5, 3)),
        (80, (6, 5, 3, 2)),
    ],
)
def test_grid_has_the_published_number_of_points(blocks: int, counts: tuple[int, ...]) -> None:
    # floor(2 (1 - S) / (L - 1) / 0.002) at S = 0.5 0.6 0.7 0.8.
    assert tuple(len(beta_grid(s, blocks)) for s in (0.5, 0.6, 0.7, 0.8)) == counts
    assert beta_grid(0.5, blocks)[:2] == [0.002, 0.004]


def test_mixed_counts_go_to_the_largest_remainders() -> None:
    # Shares 5.2 4.4 3.6 2.8: floors 5 4 3 2 sum to 14, the last two remainders get one each.
    assert mixed_kept_counts(rates(0.5, 0.1, 4), 4, 8) == [5, 4, 4, 3]


def test_mixed_ties_favour_the_earlier_block() -> None:
    # Shares 4.5 and 3.5.
    assert mixed_kept_counts([0.4375, 0.5625], 4, 8) == [5, 3]
    # Shares n + .5 .3 .1 -.1 -.3 -.5: three to give away, to .9, .7 and the first of two .5.
    for n_keep in (2, 3, 4):
        counts = mixed_kept_counts(rates(1 - n_keep / 8, 0.025, 6), n_keep, 8)
        assert counts == [n_keep + 1] + 4 * [n_keep] + [n_keep - 1]


def test_mixed_counts_stay_in_range_and_meet_the_total() -> None:
    # Shares 8 and 0: the second is raised to 1, the first gives one back.
    assert mixed_kept_counts([0.0, 1.0], 4, 8) == [7, 1]
    # Shares 4.25 3.75 0 0: floors 4 3 1 1 are one too many; 4 is the nearest to its share.
    assert mixed_kept_counts([0.46875, 0.53125, 1.0, 1.0], 2, 8) == [3, 3, 1, 1]
    for n_keep in (2, 3, 4):
        sparsity = 1 - n_keep / 8
        for beta in beta_grid(sparsity, 32):
            counts = mixed_kept_counts(rates(sparsity, beta, 32), n_keep, 8)
            assert sum(counts) == 32 * n_keep
            assert counts == sorted(counts, reverse=True)
            assert min(counts) >= 1
            assert max(counts) <= 8


# --- perplexity -------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor


class Unigram(nn.Module):
    """Gives every position the same logits; takes one window only."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Tensor) -> Output:
        assert input_ids.shape[0] == 1
        return Output(self.logits.expand(1, input_ids.shape[1], -1))


class Successor(nn.Module):
    """Is certain that token t is followed by t + 1."""

    def forward(self, input_ids: Tensor) -> Output:
        return Output(100.0 * nn.functional.one_hot(input_ids + 1, 8).float())


def test_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    tokens = torch.tensor([[0, 1, 2], [3, 3, 3]])
    assert perplexity(Unigram(torch.zeros(4)), tokens) == pytest.approx(4.0, rel=FEW_ROUNDINGS)


def test_first_token_is_given_and_windows_count_alike() -> None:
    # p = 3/4, 1/4.  Targets 0 0 and 1 1: mean of -ln 3/4 and -ln 1/4, so 1 / sqrt(3/16).
    tokens = torch.tensor([[1, 0, 0], [0, 1, 1]])
    model = Unigram(torch.tensor([math.log(3.0), 0.0]))
    assert perplexity(model, tokens) == pytest.approx(4 / math.sqrt(3), rel=FEW_ROUNDINGS)


def test_logits_score_the_next_token() -> None:
    assert perplexity(Successor(), torch.tensor([[2, 3, 4, 5]])) == pytest.approx(1.0)


def test_half_precision_logits_are_scored_in_fp32() -> None:
    # 7 equal logits: log 7 = 1.9459 is not an fp16 number; rounding it there shifts ppl by 3e-4.
    model = Unigram(torch.zeros(7, dtype=torch.float16))
    assert perplexity(model, torch.tensor([[0, 1]])) == pytest.approx(7.0, rel=FEW_ROUNDINGS)

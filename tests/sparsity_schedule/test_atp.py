import pytest
from oracles import atp_oracle
from support.families import random_model
from support.unusual import unusual_model

from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.atp import Atp
from sparsemend.sparsity_schedule.rates.progression import (
    bound,
    check_difference,
    mixed_kept,
    rates,
)
from sparsemend.sparsity_schedule.rates.units import Units

UNSTRUCTURED = Pattern.parse("unstructured")


@pytest.mark.parametrize("blocks", [2, 5, 12, 32])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6, 0.7, 0.8])
def test_rates_are_bitwise_those_of_the_formula(blocks: int, sparsity: float) -> None:
    for share in (0.0, 0.3, 1.0):
        difference = share * bound(sparsity, blocks)
        expected = [min(max(r, 0.0), 1.0) for r in atp_oracle.rates(sparsity, difference, blocks)]
        assert rates(difference, sparsity, blocks) == expected


@pytest.mark.parametrize(
    ("blocks", "sparsity", "expected"),
    # Huang et al. 2025: nine attempts of 0.002 for 32 blocks at 0.7, three for 80 blocks
    [(32, 0.7, 9), (80, 0.7, 3), (12, 0.5, 45), (16, 0.7, 20), (28, 0.6, 14)],
)
def test_the_grid_of_the_paper_has_the_published_size(
    blocks: int, sparsity: float, expected: int
) -> None:
    legal = 0
    for n in range(1, 100):
        try:
            check_difference(round(0.002 * n, 3), sparsity, blocks)
        except ValueError:
            break
        legal += 1
    assert legal == expected


@pytest.mark.parametrize("difference", [0.02, -0.02])
def test_beyond_the_bound_is_refused_in_both_directions(difference: float) -> None:
    with pytest.raises(ValueError, match=r"exceeds 2\*min\(s, 1-s\)/\(L-1\) = 0\.01935 for L=32"):
        check_difference(difference, 0.7, 32)


@pytest.mark.parametrize("difference", [-0.2, -0.05, 0.0, 0.1, 0.4])
def test_every_linear_of_a_block_gets_the_rate_of_its_block(difference: float) -> None:
    model = random_model("llama")
    allocation = Atp(common_difference=difference).allocate(
        model, Calibration(()), 0.6, UNSTRUCTURED
    )
    expected = atp_oracle.rates(0.6, difference, 3)
    for name, rate in allocation.items():
        assert rate == pytest.approx(expected[int(name.split(".")[2])], abs=1e-12)
    assert allocation.mean == pytest.approx(0.6, abs=1e-12)


def test_blocks_of_different_size_keep_the_weighted_mean() -> None:
    values = rates(0.1, 0.5, 3, [100, 100, 300])
    assert sum(v * w for v, w in zip(values, [100, 100, 300], strict=True)) / 500 == pytest.approx(
        0.5, abs=1e-12
    )
    assert values[1] - values[0] == pytest.approx(0.1)


@pytest.mark.parametrize("falling", [False, True])
def test_blocks_of_two_kinds_take_every_difference_up_to_their_bound(*, falling: bool) -> None:
    model = unusual_model("jamba")
    weights = Units.of(model, "block").weights
    assert len(set(weights)) == 2
    limit = bound(0.6, len(weights), weights, falling=falling)
    for share in (0.5, 1.0):
        difference = -share * limit if falling else share * limit
        allocation = Atp(common_difference=difference).allocate(
            model, Calibration(()), 0.6, UNSTRUCTURED
        )
        assert allocation.mean == pytest.approx(0.6, abs=1e-9)
    assert max(abs(rate - round(rate)) < 1e-9 for rate in allocation.values())  # 0 or 1
    with pytest.raises(ValueError, match="blocks of different size"):
        Atp(common_difference=1.001 * difference).allocate(
            model, Calibration(()), 0.6, UNSTRUCTURED
        )


def test_a_fixed_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="mixed:4"):
        Atp(common_difference=0.1).allocate(
            random_model("llama"), Calibration(()), 0.5, Pattern.parse("2:4")
        )


@pytest.mark.parametrize("sparsity", [0.5, 0.625, 0.75])
@pytest.mark.parametrize("blocks", [3, 8, 32])
def test_mixed_patterns_keep_the_budget_and_match_the_oracle(sparsity: float, blocks: int) -> None:
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        block_rates = rates(share * bound(sparsity, blocks), sparsity, blocks)
        kept = mixed_kept(block_rates, 8, sparsity)
        assert sum(kept) == round(blocks * 8 * (1 - sparsity))
        assert all(1 <= n <= 8 for n in kept)
        assert kept == atp_oracle.mixed_kept_counts(block_rates, round(8 * (1 - sparsity)), 8)


def test_a_mixed_pattern_resolves_to_one_n_per_block() -> None:
    model = random_model("llama")
    pattern = Pattern.parse("mixed:8")
    allocation = Atp(common_difference=0.25).allocate(model, Calibration(()), 0.5, pattern)
    per_block = {name.split(".")[2]: str(pattern.at(rate)) for name, rate in allocation.items()}
    assert per_block == {"0": "6:8", "1": "4:8", "2": "2:8"}

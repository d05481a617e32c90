"""The paired bootstrap: an exact mean, an interval as theory has it, from paired losses alone."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemend.sweep.arena.bootstrap import (
    CHUNK,
    _resampled_means,
    _widen_deviations,
    perplexity_ratio,
)


def losses(seeds: int, windows: int) -> np.ndarray:
    return np.random.default_rng(1).normal(3, 1, (seeds, windows))


def test_the_ratio_is_that_of_the_perplexities() -> None:
    best = losses(2, 50)
    other = best + np.random.default_rng(2).normal(0.1, 0.2, best.shape)
    expected = np.exp(other.mean()) / np.exp(best.mean())
    assert perplexity_ratio(other, best).mean == pytest.approx(expected, rel=1e-12)


def test_a_shift_of_every_window_has_an_interval_of_no_width() -> None:
    best = losses(3, 40)
    found = perplexity_ratio(best + np.log(1.25), best)
    assert (found.low, found.high) == pytest.approx((1.25, 1.25), rel=1e-9)
    assert found.differs


def test_with_one_seed_the_interval_is_that_of_a_mean_of_independent_windows() -> None:
    best = losses(1, 400)
    apart = np.random.default_rng(3).normal(0.0, 0.5, best.shape)
    found = perplexity_ratio(best + apart, best, resamples=40_000)
    half = 1.96 * apart.std() / 20  # standard error of 400 windows
    expected = [apart.mean() - half, apart.mean() + half]
    # quantiles of 40,000 draws: within 3 % of the half width
    assert np.log([found.low, found.high]) == pytest.approx(expected, abs=0.03 * half)


def test_seeds_that_disagree_widen_the_interval() -> None:
    best = losses(3, 200)
    other = best + np.array([[-0.3], [0.0], [0.3]])
    found = perplexity_ratio(other, best)
    assert found.low < 0.9
    assert found.high > 1.1
    assert not found.differs


def test_resampled_seeds_vary_as_new_seeds_would() -> None:
    """Of S seeds whose shifts have sample variance v, the mean's variance is v / S."""
    shifts = np.array([-0.2, 0.05, 0.1, 0.05])
    apart = np.repeat(shifts[:, None], 50, axis=1)
    means = _resampled_means(
        _widen_deviations(apart), np.ones(50), 40_000, np.random.default_rng(0)
    )
    # the standard error of a variance of 40,000 draws is 0.7 %
    assert means.var() == pytest.approx(shifts.var(ddof=1) / 4, rel=0.03)


def test_chunks_of_resamples_cover_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    best, other = losses(2, 64), losses(2, 64)[:, ::-1]
    whole = perplexity_ratio(other, best, resamples=2000)
    monkeypatch.setattr("sparsemend.sweep.arena.bootstrap.CHUNK", 64 * 300)
    assert CHUNK > 64 * 2000
    # other draws, the same distribution: its quantiles agree to a tenth of its width
    parts = perplexity_ratio(other, best, resamples=2000)
    assert parts.low == pytest.approx(whole.low, abs=0.1 * (whole.high - whole.low))


@pytest.mark.parametrize("shape", [(2, 49), (1, 50), (50,)])
def test_losses_that_are_not_paired_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same seeds and the same test windows"):
        perplexity_ratio(np.zeros(shape), losses(2, 50))


def test_windows_count_by_their_weights() -> None:
    """A window of weight 3 is three windows; the interval is resampled by windows all the same."""
    best, apart = np.zeros((1, 4)), np.array([[0.1, -0.1, 0.2, 0.0]])
    weights = np.array([3.0, 1.0, 1.0, 1.0])
    weighted = perplexity_ratio(best + apart, best, weights=weights)
    assert weighted.mean == pytest.approx(np.exp((3 * 0.1 - 0.1 + 0.2) / 6), rel=1e-12)
    assert np.log(weighted.high) <= 0.2  # no mean is above the largest difference
    assert weighted.low < weighted.mean < weighted.high

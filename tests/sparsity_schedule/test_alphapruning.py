import math

import pytest
import torch
from oracles import schedule_oracle
from support.families import random_model
from support.schedules import schedule_of

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.alphapruning import AlphaPruning, eigenvalues, rescale
from sparsemend.sparsity_schedule.rates.power_law import alpha_mid, alpha_peak, bins_for


def heavy_tailed(rows: int, columns: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """A matrix with a power law of singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    return scale * u * s * torch.linspace(0.05, 1, len(s)).pow(-0.7 - 0.1 * seed) @ v


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rows", "columns"), [(30, 70), (64, 48)])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_alphas_are_those_of_the_formula(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = heavy_tailed(rows, columns, seed, scale)
    values = schedule_oracle.eigenvalues(matrix.numpy())
    spectrum = eigenvalues(matrix)
    assert alpha_mid(spectrum) == pytest.approx(schedule_oracle.alpha_mid(values), rel=1e-9)
    for bound in (True, False):
        found = alpha_peak(spectrum, logarithmic_bound=bound)
        expected = schedule_oracle.alpha_peak(values, logarithmic_bound=bound)
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_two_lower_bounds_choose_different_tails() -> None:
    spectra = [eigenvalues(heavy_tailed(60, 60, seed)) for seed in range(8)]
    one, other = (
        [alpha_peak(spectrum, logarithmic_bound=bound) for spectrum in spectra]
        for bound in (True, False)
    )
    assert one != other


def test_bins_below_one_are_a_share_of_the_eigenvalues() -> None:
    assert [bins_for(100, n) for n in (64, 4096)] == [100, 100]
    assert [bins_for(0.0244, n) for n in (192, 576, 4096)] == [10, 14, 100]  # at least 10
    spectrum = eigenvalues(heavy_tailed(60, 60, 3))
    found = [alpha_peak(spectrum, logarithmic_bound=True, bins=b) for b in (0.5, 30, 100)]
    assert found[0] == found[1] != found[2]
    assert found[2] == alpha_peak(spectrum, logarithmic_bound=True)


def test_bins_reach_the_scores() -> None:
    model, default = random_model("llama"), schedule_of("alphapruning")
    assert isinstance(default, AlphaPruning)
    assert default.bins == 100
    coarse = schedule_of("alphapruning", bins=0.25)
    assert isinstance(coarse, AlphaPruning)
    assert default.measure(model, Calibration(())) != coarse.measure(model, Calibration(()))


def test_an_exact_power_law_gives_its_exponent() -> None:
    # quantiles of density ~ x^-alpha above 1; Hill's estimator is consistent, bias of order 1/n
    n, alpha = 2_000, 2.5
    share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    spectrum = (1 - share) ** (-1 / (alpha - 1))
    assert alpha_peak(spectrum, logarithmic_bound=False) == pytest.approx(alpha, rel=0.01)


def test_zero_singular_values_are_dropped() -> None:
    matrix = torch.diag(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert eigenvalues(matrix).tolist() == pytest.approx([1.0, 4.0, 9.0])


@pytest.mark.parametrize("shape", [(40, 1300), (1300, 40), (60, 60)])
def test_eigenvalues_of_fp32_weights_are_those_in_fp64_to_their_last_bit(
    shape: tuple[int, int],
) -> None:
    """Squares of fp32 singular values are 1e-7 of the largest off, which is 1e-2 of the least."""
    matrix = heavy_tailed(*shape, seed=3).float()
    exact = torch.linalg.svdvals(matrix.double()).square().flip(0)
    torch.testing.assert_close(eigenvalues(matrix).double(), exact, rtol=1e-6, atol=0)


def test_what_rounding_leaves_of_a_zero_is_zero() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randint(-9, 10, (2, 50, 3), generator=draw).float()
    assert len(eigenvalues(left @ right.T)) == 3  # whole numbers, so that the rank is exact


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = random_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*: 1 of .* NaN or infinite"):
        schedule_of("alphapruning").allocate(model, Calibration(()), 0.5, Pattern())


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.eye(4)])
def test_a_spectrum_without_a_power_law_is_refused(matrix: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no power law"):
        alpha_peak(eigenvalues(matrix), logarithmic_bound=True)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("metric", ["alpha_peak", "alpha_mid"])
def test_rates_are_those_of_the_formula(family: str, metric: str) -> None:
    model = random_model(family)
    means = []
    for inner in schedule_oracle.block_linears(find_blocks(model)[1]):
        alphas = []
        for linear in inner:
            values = schedule_oracle.eigenvalues(linear.weight.detach().double().numpy())
            if metric == "alpha_mid":
                alphas.append(schedule_oracle.alpha_mid(values))
            else:
                alphas.append(schedule_oracle.alpha_peak(values, logarithmic_bound=True))
        means.append(math.fsum(alphas) / len(alphas))
    expected = schedule_oracle.alphapruning_rates(means, 0.3, 0.6)
    schedule = schedule_of("alphapruning", metric=metric, weight_dtype="stored")
    found = schedule.allocate(model, Calibration(()), 0.6, Pattern())
    names = list(found)
    # logarithms of eigenvalues in fp32, of size 10 and to 1e-6, of which some ten are added
    assert list(found.scores.values()) == pytest.approx(means, rel=1e-5)
    assert [found[n] for n in names[:: len(names) // 3]] == pytest.approx(expected, abs=1e-4)
    assert found.mean == pytest.approx(0.6, abs=1e-12)


# alphas of blocks 0, 1, 2 and their rates at 0.7, then the smallest and the largest rate of the
# 32 blocks, all computed from the published files
GOLDEN = {
    "LLaMA-7B": (0.2, [2.6222, 2.8899, 2.9690], [0.5704, 0.6176, 0.6315], 0.5680, 0.8521),
    "Llama-2-7B": (0.3, [2.1356, 2.7064, 3.1232], [0.4619, 0.5647, 0.6397], 0.4619, 0.8578),
}


@pytest.mark.parametrize("model", GOLDEN)
def test_golden_rates_follow_from_the_published_alphas(model: str) -> None:
    """The smallest rate and the first two fix what the files hold besides (the scale, the smallest
    and the largest alpha); the third rate and the largest are predictions."""
    spread, alphas, rates, smallest, largest = GOLDEN[model]
    scale = smallest / (1 - spread)
    slope = (rates[1] - rates[0]) / scale / (alphas[1] - alphas[0])

    def alpha(u: float) -> float:
        return alphas[0] + (u - rates[0] / scale) / slope

    ends = [alpha(1 - spread), alpha(1 + spread)]
    # 27 further blocks of one alpha, such that the mean of u is 0.7 / scale
    known = sum((a - alphas[0]) * slope + rates[0] / scale for a in (*alphas, *ends))
    filler = alpha((32 * 0.7 / scale - known) / 27)
    found = rescale([*alphas, *ends, *[filler] * 27], [1] * 32, 0.7, spread)
    # four decimals of rates and alphas
    assert found[:3] == pytest.approx(rates, abs=2e-4)
    assert [min(found), max(found)] == pytest.approx([smallest, largest], abs=2e-4)


def test_the_largest_rate_is_one_plus_over_one_minus_the_spread_times_the_smallest() -> None:
    found = rescale([3.0, 1.0, 2.0, 5.0], [4, 1, 1, 2], 0.5, 0.2)
    assert max(found) / min(found) == pytest.approx(1.2 / 0.8)
    assert sum(s * n for s, n in zip(found, [4, 1, 1, 2], strict=True)) == pytest.approx(4.0)


def test_a_rate_above_one_is_an_error_as_coded_and_paid_for_by_the_others_otherwise() -> None:
    model = random_model("llama")
    coded = schedule_of("alphapruning", spread=0.5, budget="reference")
    with pytest.raises(ValueError, match=r"not in \[0, 1\]; lower sparsity_schedule\.spread"):
        coded.allocate(model, Calibration(()), 0.9, Pattern())
    found = schedule_of("alphapruning", spread=0.5).allocate(model, Calibration(()), 0.9, Pattern())
    assert max(found.values()) == 1.0
    assert found.mean == pytest.approx(0.9, abs=1e-12)

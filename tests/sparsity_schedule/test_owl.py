import pytest
import torch
from oracles import schedule_oracle
from support.families import random_model
from support.schedules import schedule_of
from torch import Tensor

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.owl import outlier_percent

FREE = Pattern()


def block_rates(allocation) -> list[float]:
    found: dict[str, float] = {}
    for name, rate in allocation.items():
        assert found.setdefault(name.rsplit(".", 2)[0], rate) == rate
    return list(found.values())


def test_an_outlier_lies_strictly_beyond_the_multiple_of_the_pooled_mean() -> None:
    # mean of 1, 1, 2, 4 is 2: only 4 is beyond once it, one of four
    scores = [torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 4.0]])]
    assert outlier_percent(scores, 1.0) == 25.0
    assert outlier_percent(scores, 2.0) == 0.0


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("multiple", [1.5, 3.0])
def test_rates_are_those_of_the_formula_on_a_dense_forward(
    family: str, multiple: float, tokens: Tensor
) -> None:
    model = random_model(family)
    scores = schedule_oracle.dense_scores(model, find_blocks(model)[1], tokens)
    percent = [schedule_oracle.outlier_percent(block, multiple) for block in scores]
    schedule = schedule_of("owl", outlier_multiple=multiple)
    found = schedule.allocate(model, Calibration(tokens.split(3)), 0.6, FREE)
    names = [n for n, _ in model.named_modules() if n in found]
    by_block = {n: found.scores[b] for n in names for b in found.scores if n.startswith(f"{b}.")}
    # fp32 against float64: at most one entry in a block changes sides
    step = 100 / sum(
        m.weight.numel() for m in schedule_oracle.block_linears(find_blocks(model)[1])[0]
    )
    assert list(found.scores.values()) == pytest.approx(percent, abs=step * 1.01)
    assert len(by_block) == len(found)
    expected = schedule_oracle.owl_rates(list(found.scores.values()), 0.08, 0.6)
    assert [found[n] for n in names[:: len(names) // 3]] == pytest.approx(expected, abs=1e-12)


def test_more_outliers_make_a_block_denser_and_the_rates_span_twice_the_spread(
    tokens: Tensor,
) -> None:
    found = schedule_of("owl", spread=0.1, outlier_multiple=2.0).allocate(
        random_model("llama"), Calibration(tokens.split(2)), 0.6, FREE
    )
    rates = {block: rate for block in found.scores for n, rate in found.items() if block in n}
    ranked = sorted(found.scores, key=lambda block: found.scores[block])
    assert [rates[b] for b in ranked] == sorted(rates.values(), reverse=True)
    assert max(found.values()) - min(found.values()) == pytest.approx(0.2, abs=1e-12)
    assert found.mean == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("name", ["owl", "dlp", "alphapruning"])
def test_rates_ignore_a_positive_affine_change_of_the_scores(name: str) -> None:
    schedule = schedule_of(name)
    scores, weights = [2.0, 3.5, 5.0, 2.5], [100, 120, 90, 100]
    one = schedule.rates(scores, weights, 0.6)  # type: ignore[attr-defined]
    shift = 0.0 if name == "dlp" else 7.0  # DLP divides by the sum: scale is what it ignores
    other = schedule.rates([3 * s + shift for s in scores], weights, 0.6)  # type: ignore[attr-defined]
    assert one == pytest.approx(other, abs=1e-12)
    assert len(set(one)) == 4


@pytest.mark.parametrize("name", ["owl", "dlp", "alphapruning"])
def test_equal_scores_give_the_uniform_rate(name: str) -> None:
    rates = schedule_of(name).rates([4.0] * 3, [10, 20, 30], 0.6)  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.6] * 3, abs=1e-12)


def test_rates_by_linear_rank_each_linear_by_itself(tokens: Tensor) -> None:
    model = random_model("llama")
    schedule = schedule_of("owl", granularity="linear", outlier_multiple=2.0)
    found = schedule.allocate(model, Calibration(tokens.split(2)), 0.6, FREE)
    scores = schedule_oracle.dense_scores(model, find_blocks(model)[1], tokens)
    percent = [schedule_oracle.outlier_percent([m], 2.0) for block in scores for m in block]
    assert list(found.scores) == list(found)
    assert list(found.scores.values()) == pytest.approx(percent, abs=100 / 512)
    assert max(found.values()) - min(found.values()) == pytest.approx(0.16, abs=1e-12)
    assert found.mean == pytest.approx(0.6, abs=1e-12)


def test_the_reference_clamp_misses_the_mean_and_the_exact_one_does_not(tokens: Tensor) -> None:
    calibration, wide = Calibration(tokens.split(2)), {"spread": 0.3, "outlier_multiple": 2.0}
    coded = schedule_of("owl", budget="reference", **wide)
    found = coded.allocate(random_model("llama"), calibration, 0.15, FREE)
    assert min(found.values()) == 0.01
    assert found.mean > 0.16
    exact = schedule_of("owl", **wide).allocate(random_model("llama"), calibration, 0.15, FREE)
    assert min(exact.values()) == 0.0
    assert exact.mean == pytest.approx(0.15, abs=1e-12)


def test_mixed_n_is_rounded_to_the_budget_or_as_coded(tokens: Tensor) -> None:
    pattern, model = Pattern.parse("mixed:8"), random_model("llama")
    calibration, options = Calibration(tokens.split(2)), {"spread": 0.125, "outlier_multiple": 2.0}
    free = schedule_of("owl", **options).allocate(model, calibration, 0.625, FREE)
    exact = schedule_of("owl", **options).allocate(model, calibration, 0.625, pattern)
    kept = [pattern.at(rate).kept for rate in block_rates(exact)]
    assert sum(kept) == 9  # three blocks, 3 of 8 on average
    coded = schedule_of("owl", budget="reference", **options).allocate(
        model, calibration, 0.625, pattern
    )
    # removed = 5 - round(t - mean t), t_b over a span of 2 (arXiv 2310.05175, N:8 code)
    d = list(free.scores.values())
    t = [(x - min(d)) / (max(d) - min(d)) * 2 for x in d]
    removed = [5 - round(x - sum(t) / 3) for x in t]
    assert [8 - pattern.at(rate).kept for rate in block_rates(coded)] == removed


def test_a_reference_rate_that_empties_the_groups_of_a_block_is_an_error(tokens: Tensor) -> None:
    schedule = schedule_of("owl", budget="reference", spread=0.3, outlier_multiple=2.0)
    with pytest.raises(ValueError, match=r"the sparsity 1\.0000, which is not in \[0, 0\.875\]"):
        schedule.allocate(
            random_model("llama"), Calibration(tokens.split(2)), 0.75, Pattern.parse("mixed:8")
        )

"""ER and ER-plus."""

import pytest
from oracles import schedule_oracle
from support.families import random_model
from support.schedules import schedule_of

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.rates.erdos_renyi import rates

FREE = Pattern()
LLAMA_BLOCK = {"q": (4096, 4096), "k": (1024, 4096), "up": (14336, 4096), "down": (4096, 14336)}


@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5, 0.7, 0.95])
def test_kept_weights_are_proportional_to_outputs_plus_inputs(sparsity: float) -> None:
    shapes = {**LLAMA_BLOCK, "narrow": (8, 16)}
    found = rates(shapes, sparsity)
    total = sum(r * c for r, c in shapes.values())
    kept = {n: (1 - found[n]) * r * c for n, (r, c) in shapes.items()}
    expected = schedule_oracle.er_kept(list(shapes.values()), (1 - sparsity) * total)
    assert list(kept.values()) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert sum(kept.values()) == pytest.approx((1 - sparsity) * total, rel=1e-12)


def test_a_linear_that_would_keep_more_than_it_has_stays_dense_and_the_rest_is_solved_again() -> (
    None
):
    # 4 x 4 keeps at most 16; of 116 weights 58 stay: 42 for the 10 x 10, epsilon = 42 / 20
    found = rates({"a": (4, 4), "b": (10, 10)}, 0.5)
    assert found == pytest.approx({"a": 0.0, "b": 0.58})


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2"])
def test_er_is_the_formula_on_the_shapes_of_the_model(family: str) -> None:
    model = random_model(family)
    found = schedule_of("er").allocate(model, Calibration(()), 0.6, FREE)
    shapes = [tuple(m.weight.shape) for m in prunable_linears(model).values()]
    kept = schedule_oracle.er_kept(shapes, 0.4 * sum(r * c for r, c in shapes))
    expected = [1 - k / (r * c) for k, (r, c) in zip(kept, shapes, strict=True)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-9)
    assert found.mean == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize(("dense", "count"), [("last_linear", 1), ("last_block", 7)])
def test_er_plus_keeps_the_last_layer_dense_and_the_budget(dense: str, count: int) -> None:
    model = random_model("llama")
    found = schedule_of("er_plus", dense=dense).allocate(model, Calibration(()), 0.5, FREE)
    zero = [name for name, rate in found.items() if rate == 0]
    assert zero == list(found)[-count:]
    assert found.mean == pytest.approx(0.5, abs=1e-12)
    plain = schedule_of("er").allocate(model, Calibration(()), 0.5, FREE)
    assert all(found[n] > plain[n] for n in found if n not in zero)


def test_er_plus_beyond_what_the_dense_block_leaves_is_refused_with_the_bound() -> None:
    schedule = schedule_of("er_plus", dense="last_block")
    with pytest.raises(ValueError, match=r"sparsity 0\.7 exceeds 0\.6667"):
        schedule.allocate(random_model("llama"), Calibration(()), 0.7, FREE)


@pytest.mark.parametrize("name", ["er", "er_plus"])
def test_patterns_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="rates by linear with pattern mixed:4"):
        schedule_of(name).allocate(
            random_model("llama"), Calibration(()), 0.5, Pattern.parse("mixed:4")
        )

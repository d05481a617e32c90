"""What a run makes of the numbers of its evaluations."""

from __future__ import annotations

import math

import pytest
from support.families import random_model

from sparsemend.run.evaluate import check_finite


@pytest.mark.parametrize(
    ("name", "value", "dtype", "remedy"),
    [
        ("perplexity/test", math.nan, "float16", "set model.dtype=bfloat16 (or float32)"),
        ("perplexity/task", math.inf, "bfloat16", "set model.dtype=float32"),
        ("perplexity/validation", math.inf, "float32", "look at its weights"),
    ],
)
def test_a_dense_perplexity_that_is_not_finite_stops_the_run_with_the_remedy(
    name: str, value: float, dtype: str, remedy: str
) -> None:
    with pytest.raises(FloatingPointError) as caught:
        check_finite({"perplexity/test": 15.0, name: value}, dtype, random_model("llama"))
    assert f"{name} of the dense model is {value} in model.dtype={dtype}" in str(caught.value)
    assert remedy in str(caught.value)


def test_other_numbers_of_the_dense_model_may_be_infinite() -> None:
    measured = {"perplexity/test": 15.0, "speed/ratio": math.inf}
    check_finite(measured, "float16", random_model("llama"))


def test_a_weight_that_is_not_finite_is_named_before_any_remedy() -> None:
    model = random_model("llama")
    model.lm_head.weight.data[-1, -1] = -math.inf
    with pytest.raises(FloatingPointError, match=r": lm_head\.weight holds NaN or infinity; give"):
        check_finite({"perplexity/test": math.nan}, "bfloat16", model)

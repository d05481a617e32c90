"""What a generation may be asked for."""

from __future__ import annotations

from typing import Any

import pytest

from sparsemend.generation.settings import Sampling

PLAIN: dict[str, Any] = {
    "max_new_tokens": 8,
    "greedy": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0 is not at least 1"),
        ({"greedy": True, "top_p": 0.9}, "--greedy takes the likeliest token, and --top-p draws"),
        ({"temperature": 0.0}, r"--temperature 0 is not in \[0.0001, inf\); take --greedy"),
        ({"temperature": float("nan")}, "--temperature nan is not in"),
        ({"temperature": 1e-320}, "--temperature 9.99989e-321 is not in"),
        ({"temperature": float("inf")}, "--temperature inf is not in"),
        ({"top_p": 0.0}, r"--top-p 0 is not in \(0, 1\]"),
        ({"top_p": 1.5}, r"--top-p 1.5 is not in \(0, 1\]"),
        ({"top_k": 0}, "--top-k 0 is not at least 1"),
        ({"seed": -1}, r"--seed -1 is not in \[0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_them(setting: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Sampling(**{**PLAIN, **setting})


def test_the_edges_are_inside() -> None:
    Sampling(**{**PLAIN, "max_new_tokens": 1, "top_p": 1.0, "top_k": 1, "temperature": 1e-4})

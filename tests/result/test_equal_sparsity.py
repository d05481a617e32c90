"""Results that are not equally sparse are pointed out."""

from __future__ import annotations

from sparsemend.result.equal_sparsity import unequal_sparsities


def test_results_of_one_target_that_lie_apart_are_named_with_their_sparsities() -> None:
    results = [("a", 0.7, 0.69882), ("b", 0.7, 0.69771), ("c", 0.7, 0.6991), ("d", 0.5, 0.4)]
    (line,) = unequal_sparsities(results)
    assert line.startswith("not equally sparse: of target 0.7, b achieves 0.6977 and c 0.6991, ")
    assert "more than 0.0001 apart" in line


def test_zeros_that_are_nearly_equal_and_runs_without_a_count_are_no_matter() -> None:
    results = [("a", 0.7, 0.7), ("b", 0.7, 0.70009), ("c", 0.6, 0.6), ("d", 0.7, None)]
    assert unequal_sparsities([*results, ("e", None, 0.1)]) == []

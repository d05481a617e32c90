"""Pattern names: what is accepted, what they imply, and what is refused."""

from __future__ import annotations

import pytest

from sparsemend.sparse.pattern import Pattern


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:4", "7:8", "mixed:8"])
def test_a_pattern_prints_as_it_is_written(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "4:4", "0:4", "5:4", "2-4", "2:4:8", "mixed:1", "mixed", " 2:4"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Pattern.parse(text)


def test_n_counts_kept_weights() -> None:
    assert Pattern.parse("1:4").sparsity == 0.75


@pytest.mark.parametrize("text", ["unstructured", "mixed:8"])
def test_some_patterns_fix_no_sparsity(text: str) -> None:
    with pytest.raises(ValueError, match="does not fix a sparsity"):
        _ = Pattern.parse(text).sparsity


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 8), (0.25, 6), (0.625, 3), (1.0, 0)])
def test_a_mixed_pattern_resolves_at_the_sparsity_of_a_linear(sparsity: float, kept: int) -> None:
    assert Pattern.parse("mixed:8").at(sparsity) == Pattern(kept, 8)


@pytest.mark.parametrize("text", ["unstructured", "2:4"])
def test_other_patterns_do_not_depend_on_the_sparsity(text: str) -> None:
    assert Pattern.parse(text).at(0.9) == Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "sparsity"), [("unstructured", 0.7), ("2:4", 0.5), ("mixed:8", 0.3)]
)
def test_a_fitting_sparsity_passes(text: str, sparsity: float) -> None:
    Pattern.parse(text).check_sparsity(sparsity)


def test_a_contradicting_sparsity_names_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"set sparsity=0\.75"):
        Pattern.parse("1:4").check_sparsity(0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        Pattern.parse("unstructured").check_sparsity(sparsity)

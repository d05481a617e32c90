import pytest
from support.families import FAMILIES, random_model

from sparsemend.blocks.find import prunable_linears
from sparsemend.blocks.walk import Calibration
from sparsemend.sparse.pattern import Pattern
from sparsemend.sparsity_schedule.base import Allocation
from sparsemend.sparsity_schedule.uniform import Uniform


@pytest.mark.parametrize("family", FAMILIES)
def test_every_prunable_linear_gets_the_target(family: str) -> None:
    model = random_model(family)
    allocation = Uniform().allocate(model, Calibration(()), 0.6, Pattern.parse("unstructured"))
    assert set(allocation) == set(prunable_linears(model))
    assert set(allocation.values()) == {0.6}


def test_a_rate_outside_zero_to_one_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"b: sparsity 1\.2 is not in \[0, 1\]"):
        Allocation({"a": 0.0, "b": 1.2}, {"a": 1, "b": 1}, 0.6)


def test_a_mean_off_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match="misses the target"):
        Allocation({"a": 0.4, "b": 0.8}, {"a": 1, "b": 3}, 0.6)

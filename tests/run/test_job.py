"""Building the objects of a run."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from sparsemend.run.job import build

WANDA = "sparsemend.pruner.wanda.Wanda"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"_target_": WANDA}, "missing 1 required keyword-only argument: 'variant'"),
        ({"_target_": WANDA, "varaint": True}, "unexpected keyword argument 'varaint'"),
        ({"_target_": "math.no_such_class"}, "Error locating target 'math.no_such_class'"),
    ],
)
def test_a_section_that_its_class_does_not_take_is_one_line_that_names_it(
    section: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=r"^pruner: ") as caught:
        build(OmegaConf.create({"pruner": section}).pruner)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "compare the keys of pruner" in str(caught.value)

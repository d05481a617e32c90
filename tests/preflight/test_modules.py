"""A group may be built by a class of the user's own, whose module must be found."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sparsemend.preflight.check import check_modules

CFG = OmegaConf.create({"seed": 0, "pruner": {"_target_": "of_mine_alone.Obd"}})


def test_a_class_in_a_module_that_python_does_not_find_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pruner is built by of_mine_alone\.Obd.* PYTHONPATH"):
        check_modules(CFG)


def test_a_class_in_a_module_on_the_path_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_mine_alone.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_modules(CFG)

"""The flags of a class are read from its text, as Python would see them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from sparsemend.config.flags import FLAGS, flag_of, says
from sparsemend.config.locations import conf_folder
from sparsemend.config.members import member_yaml


@pytest.mark.parametrize("group", ["pruner", "sparsity_schedule", "method", "hardware"])
def test_every_flag_of_every_member_is_what_its_class_has(group: str) -> None:
    flags = [flag for flag, contract in FLAGS.items() if f".{group}." in contract]
    assert flags
    for path in sorted((conf_folder() / group).glob("*.yaml")):
        section = member_yaml(group, path.stem)
        module, _, name = section["_target_"].rpartition(".")
        member = getattr(import_module(module), name)
        assert {f: says(section, f) for f in flags} == {f: getattr(member, f) for f in flags}, path


def test_a_users_class_inherits_through_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "flags_of_mine.py").write_text(
        "import sparsemend.extend as s\n"
        "from sparsemend.extend import Pruner, TrainedRepair as Trained\n"
        "class Plain(Pruner): ...\n"
        "class Keeps(Plain):\n    prunes = False\n"
        "class Leaf(Keeps): ...\n"
        "class Fit(Trained):\n    low_rank: bool = True\n"
        "class Dotted(s.TrainedRepair): ...\n"
        "class Late(Pruner):\n    prunes = not True\n"
    )
    assert flag_of("flags_of_mine.Plain", "prunes") is True
    assert flag_of("flags_of_mine.Leaf", "prunes") is False
    assert flag_of("flags_of_mine.Fit", "trains") is True
    assert flag_of("flags_of_mine.Fit", "low_rank") is True
    assert flag_of("flags_of_mine.Dotted", "trains") is True
    with pytest.raises(ValueError, match=r"prunes = not True is read before .* write a constant"):
        flag_of("flags_of_mine.Late", "prunes")


def test_a_class_that_no_file_defines_has_what_the_contract_says() -> None:
    assert flag_of("json.Owl", "uniform") is False
    assert says({}, "prunes") is True

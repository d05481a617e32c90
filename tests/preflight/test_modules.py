"""A group is built by a class of ours or of the user's own, whose module must be found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sparsemend.config.locations import conf_folder
from sparsemend.preflight.modules import check_modules

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


@pytest.mark.parametrize(
    ("key", "target", "now"),
    [
        ("method", "sparsemend.method.lors.Lors", "sparsemend.method.lors.lors.Lors"),
        ("logger", "sparsemend.tracking.CsvTracker", "sparsemend.logger.csv.CsvTracker"),
        ("evaluation.speed", "sparsemend.evaluation.speed.Speed", "evaluation.speed.speed.Speed"),
        ("pruner", "sparsemend.pruners.wanda.Wanda", "sparsemend.pruner.wanda.Wanda"),
    ],
)
def test_a_class_of_ours_that_has_moved_is_refused_with_its_place(
    key: str, target: str, now: str
) -> None:
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, key, {"_target_": target})
    with pytest.raises(ValueError, match=rf"{key} is built by {target}, which .*{now}"):
        check_modules(cfg)


def test_what_the_yamls_name_is_accepted() -> None:
    texts = [path.read_text() for path in conf_folder().rglob("*.yaml")]
    targets = {t for text in texts for t in re.findall(r"_target_: (sparsemend\.\S+)", text)}
    assert len(targets) > 50
    check_modules(OmegaConf.create({str(n): {"_target_": t} for n, t in enumerate(targets)}))


def test_a_class_that_a_file_of_ours_does_not_have_is_refused() -> None:
    cfg = OmegaConf.create({"pruner": {"_target_": "sparsemend.pruner.wanda.Wandaa"}})
    with pytest.raises(ValueError, match="Wandaa, which this version of sparsemend does not have"):
        check_modules(cfg)


@pytest.mark.parametrize(
    "section",
    [
        {"_target_": "sparsemend.pruner.wanda.Wanda.make"},  # of a class
        {"_target_": "${oc.env:MINE}.Wanda"},
        {"_target_": "${place}.Wanda"},
        {"_target_": "???"},
        {"_target_": "${nowhere}.Wanda"},  # others say so
    ],
)
def test_targets_that_others_resolve_are_left_to_them(
    section: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "sparsemend.pruner.wanda")
    check_modules(OmegaConf.create({"place": "sparsemend.pruner.wanda", "pruner": section}))


def test_a_target_inside_a_list_is_seen() -> None:
    cfg = OmegaConf.create({"logger": [{"_target_": "of_mine_alone.Tracker"}]})
    with pytest.raises(ValueError, match=r"logger\.0 is built by of_mine_alone"):
        check_modules(cfg)


def test_our_modules_are_looked_up_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from omegaconf import OmegaConf\n"
        "from sparsemend.preflight.modules import check_modules\n"
        "check_modules(OmegaConf.create({'a': {'_target_': 'sparsemend.pruner.wanda.Wanda'}}))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

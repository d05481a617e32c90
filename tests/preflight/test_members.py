"""A pruner, a schedule and a method from a folder outside the project get what ours have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.command_runs import files, put_workspace, python
from support.configs import compose

from sparsemend.config.compose import compose_command
from sparsemend.errors import OverrideError
from sparsemend.preflight import check as preflight
from sparsemend.preflight.members import without_effect
from sparsemend.result.runs import find_runs
from sparsemend.sweep.arena.rows import read_arena

CLASSES = """
from dataclasses import dataclass
from torch import nn
from sparsemend.extend import Allocation, Pruned, Pruner, SparseLinear, SparsitySchedule
from sparsemend.extend import TrainedRepair, adapters, attach_adapters, lowest_of_all
from sparsemend.sparsity_schedule.rates.units import Units

@dataclass(kw_only=True)
class LeastPower(Pruner):
    power: float
    needs_calibration = False
    def statistic(self, in_features, device):
        return None
    def __call__(self, weight, statistic, sparsity, pattern):
        score = weight.float().abs() ** self.power
        removed = lowest_of_all(score, int(sparsity * score.numel()))
        return Pruned(weight.masked_fill(removed, 0), ~removed)

@dataclass(kw_only=True)
class Tilted(SparsitySchedule):
    tilt: float
    def decide(self, model, calibration, sparsity, pattern):
        size = Units.of(model, "block").size
        return Allocation(dict.fromkeys(size, sparsity), size, sparsity)

class GainLinear(SparseLinear):
    def __init__(self, base):
        super().__init__(base.weight, base.bias, base.keep)
        self.gain = nn.Parameter(base.weight.new_ones(base.out_features, 1).float())
    def effective_weight(self):
        return (self.gain * self.weight).to(self.weight.dtype)

@dataclass(kw_only=True)
class OutputGain(TrainedRepair):
    low_rank = True
    start: float
    rank: int
    def attach(self, model, bench):
        attach_adapters(model, lambda name, linear: GainLinear(linear))
    def trainable(self, model):
        return [linear.gain for _, linear in adapters(model)]
"""
CHECKS = """
LEAST = {"pruner": ("power", 0), "sparsity_schedule": ("tilt", -1), "method": ("start", 0)}

def check(asked):
    key, least = LEAST[asked.key]
    if asked.section[key] <= least:
        raise ValueError(f"{asked.key}.{key}={asked.section[key]} is not above {least}; set 1")

def without_effect(section):
    return {"rank"}
"""
YAMLS = {
    "pruner/least_power": "_target_: outside.LeastPower\npower: 1.0\n",
    "sparsity_schedule/tilted": "_target_: outside.Tilted\ntilt: 0.0\n",
    "method/output_gain": "defaults: [{/training@_here_: default}]\n_target_: outside.OutputGain\n"
    "learning_rate: 1.0e-2\nstart: 1.0\nrank: 99999\n",
    "arena/output_gain": "# @package _global_\ndefaults:\n  - override /method: output_gain\n"
    "  - _self_\narena:\n  row: output_gain\n",
}
OWN = ("pruner=least_power", "sparsity_schedule=tilted", "method=output_gain")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, its checks and the yamls; on Python's path."""
    (tmp_path / "outside.py").write_text(CLASSES)
    (tmp_path / "outside_checks.py").write_text(CHECKS)
    for name, text in YAMLS.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    for name in ("outside", "outside_checks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def names_beside(folder: Path, *overrides: str) -> None:
    """Compose a command line as the command does."""
    compose_command(list(overrides), extra=folder)


def test_each_one_s_own_check_refuses_and_its_class_is_not_imported(outside: Path) -> None:
    search = f"hydra.searchpath=[{outside}]"
    cfg = compose("run", [search, *OWN])
    preflight.check(cfg)  # a rank beyond every width has no effect, as the member says
    assert without_effect(cfg.method) == {"rank"}
    for knob, words in (
        ("pruner.power=0", r"pruner\.power=0 is not above 0; set 1"),
        ("sparsity_schedule.tilt=-2", r"sparsity_schedule\.tilt=-2 is not above -1"),
        ("method.start=0", r"method\.start=0 is not above 0"),
        ("method.learning_rate=0", r"method\.learning_rate=0 is not above 0"),  # of all members
        ("pattern=2:4", "which tilted varies"),
    ):
        values = [knob, "sparsity=0.5"]
        with pytest.raises(ValueError, match=words):
            preflight.check(compose("run", [search, *OWN, *values]))
    assert "outside" not in sys.modules


def test_a_file_of_checks_without_a_check_is_refused(outside: Path) -> None:
    (outside / "outside_checks.py").write_text("def chek(asked): ...\n")
    with pytest.raises(ValueError, match=r"outside_checks\.py defines none of check, without_"):
        preflight.check(compose("run", [f"hydra.searchpath=[{outside}]", *OWN]))


def test_the_nearest_name_and_the_search_see_them(outside: Path) -> None:
    with pytest.raises(OverrideError, match="output_gain"):
        names_beside(outside, "method=output_gian")
    names_beside(outside, *OWN, "+search=learning_rate", "search.key=method.start")


@pytest.mark.slow
def test_a_refusal_comes_before_torch_in_one_line(outside: Path) -> None:
    code = (
        "import sys\nfrom sparsemend.cli import main as cli\n"
        f"sys.argv = ['sparsemend', '--config-dir', {str(outside)!r}, *{OWN!r}, 'pruner.power=0']\n"
        "try:\n    cli.main()\n"
        "finally:\n    print('torch' in sys.modules, 'outside' in sys.modules)\n"
    )
    done = python(["-c", code], outside)
    assert (done.returncode, done.stdout) == (1, "False False\n")
    assert done.stderr == "error: pruner.power=0 is not above 0; set 1\n"


@pytest.mark.slow
def test_table_arena_and_card_name_them(outside: Path) -> None:
    code = "from sparsemend.cli import main as cli\ncli.main()\n"
    base = ["-c", code, "--config-dir", str(outside), *OWN[:2], "method.max_steps=2"]
    base += files(put_workspace(outside))
    arena = ["experiment=arena", "arena=output_gain", "evaluation=[perplexity]", "arena.steps=2"]
    shown = python(["-c", code, "--config-dir", str(outside), "--help"], outside)
    assert "output_gain" in shown.stdout
    done = python([*base, *arena, "export=true", "hydra.run.dir=out"], outside)
    assert done.returncode == 0, done.stderr
    assert [entry.row for entry in read_arena([outside / "out"]).entries] == ["output_gain"]
    card = (outside / "out" / "model" / "README.md").read_text()
    assert "LeastPower(" in card
    assert "Tilted(" in card
    assert "OutputGain(" in card
    (run,) = find_runs([outside / "out"])
    assert run.row.label == "least_power + tilted + output_gain"

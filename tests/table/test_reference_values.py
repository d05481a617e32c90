"""Every experiment has the values of its paper or its authors' code, or its header says otherwise.

reference_values.yaml holds them, each with its source.  Which differences stay is written in one
place, the lines of an experiment's header after "Differences from the reference".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from support.configs import compose
from support.tiers import slow_but_for

from sparsemend.config.locations import conf_folder
from sparsemend.config.members import member_yaml

TABLE = yaml.safe_load((Path(__file__).with_name("reference_values.yaml")).read_text())
EXPERIMENTS: Mapping[str, Mapping[str, list[Any]]] = TABLE["experiments"]
UNKNOWN = "unknown"
OURS = "claims/"  # and all that lie beside the papers' folders, but for the next
RELEASED = "losa_released"
FIRST_LINE = "# Differences from the reference"
# one that prunes, one that repairs block by block, those that train
QUICK = ("wanda/readme", "ebft/abstract", "lors/alpaca_gpt4", "perp/released", "losa_released")
EACH = slow_but_for(EXPERIMENTS, QUICK)


def header(name: str) -> list[str]:
    text = (conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.partition("\ndefaults:")[0].splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(FIRST_LINE)]
    assert len(starts) == 1, f"{name}: one list of differences in the header, and the last thing"
    return lines[starts[0] :]


def named(name: str) -> set[str]:
    """The keys that an experiment's header says differ."""
    found = (re.match(r"#   (\S+): ", line) for line in header(name)[1:])
    return {match[1] for match in found if match and match[1] != "*"}


def value_of(cfg: DictConfig, key: str) -> Any:
    if key == "method.warmup_steps":
        return int(cfg.method.warmup_fraction * cfg.method.max_steps)
    member, slash, rest = key.partition("/")
    if slash:
        member_name, _, inner = rest.partition(".")
        return member_yaml(member, member_name)[inner]
    value = OmegaConf.select(cfg, key, throw_on_missing=True)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def differing(name: str, cfg: DictConfig) -> set[str]:
    """The keys whose value is not that of the reference."""
    known = {key: value for key, (value, _) in EXPERIMENTS[name].items() if value != UNKNOWN}
    return {key for key, value in known.items() if value_of(cfg, key) != value}


@pytest.mark.parametrize("name", EACH)
def test_an_experiment_has_its_references_values_or_names_the_difference(name: str) -> None:
    assert differing(name, compose("run", [f"experiment={name}"])) == named(name)


@pytest.mark.parametrize("line", ["method.betas=[0.9,0.95]", "method.keep_best=true", "seed=1"])
def test_a_value_that_changes_is_seen(line: str) -> None:
    name = "lors/alpaca_gpt4"
    key = line.partition("=")[0]
    assert differing(name, compose("run", [f"experiment={name}", line])) == {*named(name), key}


def test_every_experiment_of_a_paper_is_in_the_table() -> None:
    folder = conf_folder() / "experiment"
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    ours = {name for name in names if "/" not in name or name.startswith(OURS)} - {RELEASED}
    assert set(EXPERIMENTS) == names - ours


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_header_lists_its_differences_and_says_where_there_are_none(name: str) -> None:
    first, *lines = header(name)
    entries = [line for line in lines if re.match(r"#   \S+: ", line)]
    assert first == f"{FIRST_LINE}:" if entries else first == f"{FIRST_LINE}: none known."
    assert all(line.startswith("#   ") for line in lines), f"{name}: nothing follows the list"
    assert named(name) <= set(EXPERIMENTS[name])


def test_every_value_says_where_it_stands() -> None:
    for name, values in EXPERIMENTS.items():
        for key, (value, source) in values.items():
            label, _, place = source.partition(" ")
            if value == UNKNOWN:
                assert source, (name, key)
            else:
                assert label.rstrip(",") in TABLE["sources"], (name, key, source)
                assert place or label in ("torch", "trainer", "review"), (name, key, source)


def test_a_repository_is_named_with_its_commit() -> None:
    for label, source in TABLE["sources"].items():
        if source.startswith("github.com/"):
            assert re.fullmatch(r"github\.com/[\w.-]+/[\w.-]+ [0-9a-f]{40}", source), label

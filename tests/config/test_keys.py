"""Every key of a composed config has its row in the table of keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from sparsemend.config.keys import KEYS, Key, keys_that, keys_that_do_not, scalars
from sparsemend.config.locations import conf_folder
from sparsemend.config.values import config_hash

NO_KEYS = {"hydra", "defaults", "_self_"}
DIFFS = {"experiment", "scale", "arena"}  # groups that only set keys of others


def keys_of(path: Path) -> set[str]:
    """The keys that a yaml of run.yaml's level adds to the config."""
    content = yaml.safe_load(path.read_text()) or {}
    groups = {
        str(name).partition("@")[0].removeprefix("optional ").removeprefix("override ")
        for entry in content.get("defaults", [])
        if isinstance(entry, dict)
        for name in entry
    }
    sections = {g for g in groups - DIFFS if "/" not in g} if path.name == "run.yaml" else set()
    return (set(content) | sections) - NO_KEYS


def whole_config_yamls() -> list[Path]:
    """run.yaml, and every yaml whose keys land beside those of run.yaml."""
    yamls = sorted(conf_folder().rglob("*.yaml"))
    whole = [path for path in yamls if "# @package _global_" in path.read_text()]
    return [conf_folder() / "run.yaml", *whole]


@pytest.mark.parametrize("column", Key._fields)
def test_a_list_of_keys_and_its_complement_are_the_table(column: str) -> None:
    assert {*keys_that(column)} | {*keys_that_do_not(column)} == {*KEYS}
    assert not {*keys_that(column)} & {*keys_that_do_not(column)}


def test_every_key_has_its_row() -> None:
    missing = {
        f"{key} of {path.relative_to(conf_folder())}"
        for path in whole_config_yamls()
        for key in keys_of(path) - {*KEYS}
    }
    assert not missing, f"without a row in config/keys.py: {', '.join(sorted(missing))}"


def test_no_row_is_of_a_key_that_nothing_adds() -> None:
    added = {key for path in whole_config_yamls() for key in keys_of(path)}
    assert {*KEYS} <= added


def test_a_key_without_a_row_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("defaults:\n  - model: tiny\n  - optional scale: null\nspeed: 3\nhydra: {}\n")
    assert keys_of(path) - {*KEYS} == {"speed"}
    assert keys_of(path) & {*KEYS} == {"model"}


def test_the_hash_of_a_stored_config_is_the_one_it_was_stored_with() -> None:
    """A value of every key of that time; the digest is older than the table of keys."""
    names = sorted({*KEYS} - LATER)
    config = {name: {"a": number, "b": [1, None]} for number, name in enumerate(names)}
    assert config_hash(config) == STORED
    for name, key in KEYS.items():
        changed = config_hash({**config, name: 3}) != STORED
        assert changed == key.changes_numbers, name


# keys that came after the digest was written down
LATER = {
    *("claim", "control", "debug", "export_form", "export_private", "export_push"),
    *("export_values", "prunable", "true_sequential"),
}
STORED = "7907ff5ad972f87fd8ed984deb06c7d64448b188a9dc9f609eb05632ba0a09e2"


def test_scalars_leave_sections_out() -> None:
    cfg = OmegaConf.create({"seed": 1, "data": {"name": "x"}, "pattern": "2:4"})
    assert scalars(cfg, ("seed", "data", "pattern")) == {"seed": 1, "pattern": "2:4"}

"""Compose configs fast: what a choice of members gives is composed once per process.

Hydra's `compose` takes longer than most tests that need a config.  Tests of the commands compose by
Hydra alone, and tests/test_support.py compares the two.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from hydra import compose as compose_by_hydra
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from sparsemend.config.locations import conf_folder


def compose(config_name: str, overrides: list[str] | tuple[str, ...] = ()) -> DictConfig:
    """The config that Hydra's `compose` gives for these overrides, a copy of the caller's own."""
    choices = tuple(line for line in overrides if _is_choice(line))
    values = [line for line in overrides if not _is_choice(line)]
    config = copy.deepcopy(_chosen(config_name, choices))
    parsed = OverridesParser.create().parse_overrides(values)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    return config


@cache
def _chosen(config_name: str, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(conf_folder())):
        return compose_by_hydra(config_name, list(choices))


@cache
def _groups() -> frozenset[str]:
    folders = (path for path in Path(conf_folder()).rglob("*") if path.is_dir())
    return frozenset(path.relative_to(conf_folder()).as_posix() for path in folders)


def _is_choice(line: str) -> bool:
    """Whether an override chooses a member of a group (`data@data.text=text`) or where they lie."""
    key = line.lstrip("+~").partition("=")[0].partition("@")[0]
    return key in _groups() or key.startswith("hydra.")

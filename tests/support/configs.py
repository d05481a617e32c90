"""Compose configs fast: what a choice of members gives is composed once per process.

Hydra's `compose` takes longer than most tests that need a config.  Tests of the commands compose by
Hydra alone, and tests/test_support.py compares the two.  Half of Hydra's own time goes into reading
the same yaml files, which `reading_once` spares all of them.
"""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path

from hydra import compose as compose_by_hydra
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult
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


def reading_once() -> None:
    """From now on Hydra reads every file of conf/ once per process, and gets a copy each time."""
    read, results = FileConfigSource.load_config, dict[tuple[str, str, str], bytes]()

    def load_config(source: FileConfigSource, config_path: str) -> ConfigResult:
        if Path(source.path) != conf_folder():
            return read(source, config_path)  # a test may write it anew
        key = (source.provider, source.path, config_path)
        if key not in results:
            results[key] = pickle.dumps(read(source, config_path))
        result: ConfigResult = pickle.loads(results[key])
        return result

    FileConfigSource.load_config = load_config  # type: ignore[method-assign]

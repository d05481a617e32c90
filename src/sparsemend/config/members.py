"""What is said of a configured class without importing it: its name, its early checks, its yaml.

A member's class may need torch, whose import takes longer than all checks.  So what a member
refuses early lies in a module `<module>_checks` beside the class's own, free of torch; ours and a
user's own are looked for alike.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.locations import conf_folder

OURS = "sparsemend."
CHECKS = "_checks"


def member_name(target: str) -> str:
    """The name of a member in tables: of ours its file, of a user's own its class in snake case."""
    module, _, name = target.rpartition(".")
    if target.startswith(OURS) or not module:
        return target.split(".")[-2:][0]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def checks_of(target: str) -> ModuleType | None:
    """The module of a member's early checks, imported; None where there is no such file."""
    name = target.rpartition(".")[0] + CHECKS
    return import_module(name) if module_file(name) is not None else None


def targets(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key of the section, target) of every section that names a class, resolved."""
    if isinstance(value, ListConfig):
        keys: list[Any] = list(range(len(value)))
    elif isinstance(value, DictConfig) and not (value._is_none() or value._is_missing()):
        keys = list(value)
        target = _value_of(value, "_target_")
        if isinstance(target, str):
            yield prefix, target
    else:
        return
    for key in keys:
        if OmegaConf.is_config(inner := _value_of(value, key)):
            yield from targets(inner, f"{prefix}.{key}" if prefix else str(key))


@cache
def member_yaml(group: str, name: str) -> Mapping[str, Any]:
    """The keys of conf/GROUP/NAME.yaml over those of the members of the group that it names first.

    Interpolations stay as they are; `data@data.text` and the like stand under `text`.
    """
    path = conf_folder() / group / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    keys: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            keys |= member_yaml(group, entry)
        elif isinstance(entry, dict):
            for place, member in entry.items():
                inner, _, key = place.partition("@")
                if member is not None and key.isidentifier() and inner == f"/{group}":
                    keys[key] = member_yaml(group, str(member))
    inside = {key: {**keys[key], **content[key]} for key in content if _both(keys, content, key)}
    return {**keys, **content, **inside}


def _both(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> bool:
    return isinstance(first.get(key), Mapping) and isinstance(second.get(key), Mapping)


def module_file(name: str) -> Path | None:
    """The file of a module, found without importing the packages it lies in; None without one."""
    top, *inner = name.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        return None
    folders = _folders(top) if inner else [Path(entry or ".") for entry in sys.path]
    for folder in folders:
        place = folder.joinpath(*(inner or [top]))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def _folders(package: str) -> list[Path]:
    """The folders of a package at the top of Python's path."""
    try:
        spec = find_spec(package)
    except ValueError:  # a module without a spec, as `__main__`
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]


def _value_of(config: Any, key: Any) -> Any:
    """The value of a key; None where it is missing or refers to what is not there.

    Other checks, and Hydra, name such a key.
    """
    try:
        return config[key] if not OmegaConf.is_missing(config, key) else None
    except (OmegaConfBaseException, KeyError):
        return None

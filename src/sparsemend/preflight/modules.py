"""Refuse a configured class that Python does not find, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.config.locations import conf_folder

PACKAGE = "sparsemend"


def check_modules(cfg: DictConfig) -> None:
    """Raise ValueError on a `_target_` whose module does not exist.

    Of a user's own class only the first part of its path is looked up, since a deeper look would
    import the user's package.
    """
    for key, target in _targets(OmegaConf.to_container(cfg, resolve=False)):
        top = target.partition(".")[0]
        if top == PACKAGE:
            _check_our_class(key, target)
        elif find_spec(top) is None:
            raise ValueError(
                f"{key} is built by {target}, but Python finds no module {top}; put the "
                f"folder of {top}.py on PYTHONPATH"
            )


def _check_our_class(key: str, target: str) -> None:
    """Raise ValueError where the class has moved since a config was stored."""
    module, _, name = target.rpartition(".")
    if not _is_file(module):
        places = sorted(_places(name))
        hint = f" (its {name} is {' or '.join(places)})" if places else ""
        raise ValueError(
            f"{key} is built by {target}, which this version of sparsemend does not have{hint}; "
            "repeat a stored run by its own command, and name a class by its present place"
        )


def _is_file(module: str) -> bool:
    """Whether a dotted name is a module of Python, and not a folder of modules."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # what stands before the last dot is no package
        return False
    return spec is not None and spec.submodule_search_locations is None


def _places(name: str) -> set[str]:
    """The targets in conf/ that are classes of this name."""
    pattern = re.compile(rf"^\s*_target_: (sparsemend\.\S+\.{re.escape(name)})$", re.MULTILINE)
    texts = (path.read_text(encoding="utf-8") for path in conf_folder().rglob("*.yaml"))
    return {place for text in texts for place in pattern.findall(text)}


def _targets(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key of the section, target) of every section that names a class."""
    if not isinstance(value, Mapping):
        return
    if isinstance(value.get("_target_"), str):
        yield prefix, value["_target_"]
    for key, item in value.items():
        yield from _targets(item, f"{prefix}.{key}" if prefix else str(key))

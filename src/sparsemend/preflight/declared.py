"""Refuse a value that the yaml line of its key does not allow: wrong type, bound or choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsemend.config.declaration import Declaration, is_a, text_of
from sparsemend.config.declared import Declarations, declarations


def check_declared(cfg: DictConfig, folders: Sequence[Path] = ()) -> None:
    """Raise ValueError naming the first key whose value its declaration does not allow.

    folders: the user's own config folders on Hydra's search path, beside conf/.  Keys without a
    value, and those that refer to what does not exist, are left to other checks.
    """
    entries = declarations(cfg, folders)
    for key, declared in entries.items():
        try:
            value = _value(cfg, key, entries)
        except (KeyError, OmegaConfBaseException):
            continue
        if not declared.accepts(value):
            raise ValueError(_refusal(key, value, declared))


def _value(cfg: DictConfig, key: str, entries: Declarations) -> Any:
    """The plain value of a dotted key; raises KeyError where there is none.

    Raises ValueError where the key lies in what is not a mapping, unless another member of the
    group declares it so.
    """
    config: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(config, DictConfig):
            parent = ".".join(parts[:depth])
            if parent in entries and entries[parent].accepts(_plain(config)):
                raise KeyError(key)
            raise ValueError(
                f"{parent}={text_of(_plain(config))} is not a mapping; set keys inside it, "
                f"{key}=VALUE for one"
            )
        if part not in config or OmegaConf.is_missing(config, part):
            raise KeyError(key)
        config = config[part]
    return _plain(config)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _refusal(key: str, value: Any, declared: Declaration) -> str:
    """The line of one refusal: the value, what is legal, and a value that is."""
    number = is_a("float", value)
    if number and declared.kinds == ("str",):
        return f"{key}={value} is a number, not a string; quote it: {key}=\"'{value}'\""
    wrong = declared.wrong_elements(value) if declared.choices else []
    named = f"{key}={text_of(value)}" + "".join(f": {text_of(item)}" for item in wrong[:1])
    line = f"{named} is not {declared.legal(value)}"
    if number and any(":" in choice for choice in declared.choices):
        return (
            f"{line}; YAML reads an unquoted 2:4 as a number in base 60, so quote it in the file, "
            f"{key}: '2:4'"
        )
    example = declared.example(value)
    if example is None and not declared.null:
        return line
    return f"{line}; set for example {key}={text_of(example)}"

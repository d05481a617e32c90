"""A suite's choices: the section behind each label, composed by Hydra as a run would compose it.

A choice names the member of a group and, beside it, values that differ from the member's yaml:
`{method: masked_lora, rank: 8}` is `sparsemend method=masked_lora method.rank=8`.  Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from omegaconf import DictConfig, OmegaConf

from sparsemend.config.compose import compose_command
from sparsemend.errors import OverrideError, blame

GROUPS = ("method", "pruner", "sparsity_schedule")


def compose_section(key: str, choice: Mapping[str, Any], search: list[str]) -> DictConfig:
    """The section of conf/run.yaml that `choice` selects; messages name `key` as its place.

    Raises OverrideError on a name that does not exist, ValueError on a value that is missing.
    """
    named = [group for group in GROUPS if group in choice]
    if len(named) != 1:
        raise ValueError(f"{key}={dict(choice)} must name one of: {', '.join(GROUPS)}")
    group = named[0]
    rest = {name: value for name, value in choice.items() if name != group}
    lines = [f"{group}={choice[group]}", *_lines(group, rest), *search]
    try:
        jobs = compose_command(lines).configs
    except OverrideError as error:
        raise OverrideError(f"{key}: {error}") from error
    section: DictConfig = jobs[0][group]
    for name in sorted(OmegaConf.missing_keys(section)):
        lacking = name.removeprefix(f"{group}.")
        raise ValueError(f"{key} has no value for {lacking}; give +{key}.{lacking}=VALUE")
    return section


def build(key: str, choice: Mapping[str, Any], search: list[str]) -> Any:
    """The configured object; a user's own may live in any module."""
    return instance(key, compose_section(key, choice, search))


def instance(key: str, section: DictConfig) -> Any:
    """The object of a composed section; messages name `key` as its place."""
    with blame(key, f"compare the keys of {key} with the constructor that its _target_ names"):
        return instantiate(
            section, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS
        )


def _lines(prefix: str, values: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _lines(f"{prefix}.{name}", value)
        else:
            lines.append(f"{prefix}.{name}={json.dumps(value)}")
    return lines

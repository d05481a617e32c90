"""A composed config as plain data: its leaves, its hash, the differences of two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.config.keys import keys_that_do_not

NOT_HASHED = keys_that_do_not("changes_numbers")
# the same of keys inside a group: how a step or measurement is split changes only the order of
# sums and the draws of dropout, and where weights and hidden states lie, and what is computed
# twice, changes nothing
NOT_HASHED_INSIDE = (
    "hardware.micro_batch",
    "hardware.evaluation_batch",
    "hardware.activation_checkpointing",
    "hardware.offload",
    "hardware.stream",
    "hardware.states",
    "hardware.evaluation_states",
)


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the resolved config, less what does not change the numbers."""
    return hashlib.sha256(
        json.dumps(_hashed_part(config), sort_keys=True, default=str).encode()
    ).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`key: STORED there, WANTED here` for every leaf in which two configs differ."""
    there, here = dict(leaves(_hashed_part(stored))), dict(leaves(_hashed_part(wanted)))
    return [
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, _NOTHING) != here.get(key, _NOTHING)
    ]


_NOTHING = object()


def _hashed_part(config: Mapping[str, Any]) -> dict[str, Any]:
    part = {key: value for key, value in config.items() if key not in NOT_HASHED}
    for dotted in NOT_HASHED_INSIDE:
        group, _, left_out = dotted.partition(".")
        if isinstance(inside := part.get(group), Mapping):
            part[group] = {key: value for key, value in inside.items() if key != left_out}
    return part


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, keys in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A job's config as plain values, interpolations resolved."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config


def override_key(line: str) -> str:
    """The key of an override line: `data.seqlen` of `data.seqlen=1024`, `++data.seqlen=1024`."""
    return line.lstrip("+~").partition("=")[0]

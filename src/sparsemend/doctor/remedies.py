"""Overrides that lower the memory of a stage, in the order in which they are tried (no torch).

Each is tried by a dry run of its own, so what is named has been seen to help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Remedy:
    """Keys to set, for the stages that begin so.

    alters: whether numbers change; such a remedy comes last.
    """

    values: Mapping[str, Any]
    stages: tuple[str, ...]
    device: str
    alters: str = ""

    @property
    def lines(self) -> list[str]:
        """The overrides of a command line."""
        return [f"{key}={_text(value)}" for key, value in self.values.items()]

    def serves(self, cfg: DictConfig, stage: str, device: str) -> bool:
        """Whether it is for this stage, and changes this configuration."""
        here = device == self.device and stage.startswith(self.stages)
        settable = all(_has(cfg, key) for key in self.values)
        return (
            here
            and settable
            and any(OmegaConf.select(cfg, key) != value for key, value in self.values.items())
        )

    def apply(self, cfg: DictConfig) -> DictConfig:
        """`cfg` with its values."""
        changed = cfg.copy()
        for key, value in self.values.items():
            OmegaConf.update(changed, key, value)
        return changed


ALL, MEASURE, FIT = ("",), ("evaluate",), ("repair: fit",)
REMEDIES = (
    Remedy({"hardware.stream": True}, ALL, "device"),
    Remedy({"hardware.stream": True}, ALL, "host"),
    Remedy({"hardware.states": "host"}, ("prune", "repair"), "device"),
    Remedy({"hardware.states": "file"}, ("prune", "repair"), "host"),
    Remedy({"hardware.offload": True}, ("load", "prune", "repair"), "device"),
    Remedy({"hardware.activation_checkpointing": True}, ("repair",), "device"),
    Remedy({"hardware.activation_checkpointing": True}, ("repair",), "host"),
    Remedy({"method.init_linears_per_pass": 8}, ("repair",), "host"),
    Remedy({"hardware.micro_batch": 2}, ("repair",), "device"),
    Remedy({"hardware.micro_batch": 2}, ("repair",), "host"),
    Remedy({"hardware.micro_batch": 1}, ("repair",), "device"),
    Remedy({"hardware.micro_batch": 1}, ("repair",), "host"),
    Remedy(
        {"method.sensitivity_gradient": "candidates"},
        FIT,
        "device",
        "follows the sensitivity of fewer weights",
    ),
    Remedy({"hardware.evaluation_batch": 1}, MEASURE, "device"),
    Remedy({"hardware.evaluation_batch": 1}, MEASURE, "host"),
    Remedy({"cache.models": False}, ("prune",), "host"),
    Remedy({"model.dtype": "bfloat16"}, ALL, "host", "rounds the weights"),
    Remedy({"model.dtype": "bfloat16"}, ALL, "device", "rounds the weights"),
)


def choices(cfg: DictConfig, stage: str, device: str) -> Sequence[Remedy]:
    """The remedies that may lower the peak of a stage, those that alter numbers last."""
    serving = [remedy for remedy in REMEDIES if remedy.serves(cfg, stage, device)]
    return sorted(serving, key=lambda remedy: bool(remedy.alters))


def _has(cfg: DictConfig, key: str) -> bool:
    group, _, name = key.rpartition(".")
    section = OmegaConf.select(cfg, group)
    return section is not None and name in section


def _text(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )

"""What keeps a run from leaving the blocks of its model in files, before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.config.flags import flag_of, says
from sparsemend.config.members import checks_of, member_name
from sparsemend.names import ADAPTER


def obstacle(cfg: DictConfig) -> str | None:
    """The first part of a configuration that needs the whole model in memory, and why."""
    if cfg.from_run is not None:
        if (Path(cfg.from_run) / ADAPTER).is_dir():
            return f"the adapter of from_run={cfg.from_run} is attached to all blocks at once"
    else:
        reason = method_obstacle(cfg.method) or schedule_obstacle(cfg.sparsity_schedule)
        if reason is not None:
            return reason
    return evaluation_obstacle(cfg.get("evaluation") or {})


def method_obstacle(section: DictConfig) -> str | None:
    """Why a method needs the whole model in memory; None where it works block by block."""
    if says(section, "streams"):
        return None
    return f"method={member_name(str(section._target_))} works on all blocks of the model at once"


def schedule_obstacle(section: DictConfig) -> str | None:
    """Why a schedule needs the whole model in memory; None where it works block by block."""
    if says(section, "streams"):
        return None
    name = member_name(str(section._target_))
    return f"sparsity_schedule={name} reads the weights of all blocks of the model at once"


def evaluation_obstacle(sections: Any) -> str | None:
    """The first evaluation, of sections by name, that needs the whole model in memory, and why."""
    for name, section in sections.items():
        target = str(section.get("_target_")) if OmegaConf.is_dict(section) else ""
        if not target:
            continue
        if not flag_of(target, "streams"):
            return f"evaluation={name} needs all blocks of the model at once"
        ask = getattr(checks_of(target), "needs_whole_model", None)
        if ask is not None and (reason := ask(section)) is not None:
            return str(reason)
    return None

"""What keeps a run from leaving the blocks of its model in files, before torch is imported."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sparsemend.config.flags import flag_of, says
from sparsemend.config.members import checks_of, member_name
from sparsemend.names import ADAPTER


def obstacle(cfg: DictConfig) -> str | None:
    """The first part of a configuration that needs the whole model in memory, and why."""
    if cfg.from_run is not None:
        if (Path(cfg.from_run) / ADAPTER).is_dir():
            return f"the adapter of from_run={cfg.from_run} is attached to all blocks at once"
    elif not says(cfg.method, "streams"):
        name = member_name(str(cfg.method._target_))
        return f"method={name} works on all blocks of the model at once"
    for name, section in (cfg.get("evaluation") or {}).items():
        target = str(section.get("_target_")) if OmegaConf.is_dict(section) else ""
        if not target:
            continue
        if not flag_of(target, "streams"):
            return f"evaluation={name} needs all blocks of the model at once"
        ask = getattr(checks_of(target), "needs_whole_model", None)
        if ask is not None and (reason := ask(section)) is not None:
            return str(reason)
    return None

"""Refuse a class of the user's own whose module Python does not find, before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig


def check_modules(cfg: DictConfig) -> None:
    """Raise ValueError on a group whose `_target_` begins with a module that does not exist."""
    for key, section in cfg.items():
        group = str(key)
        target = section.get("_target_") if isinstance(section, DictConfig) else None
        module = str(target).partition(".")[0]
        if target is not None and find_spec(module) is None:
            raise ValueError(
                f"{group} is built by {target}, but Python finds no module {module}; put the "
                f"folder of {module}.py on PYTHONPATH"
            )

"""Refuse to stream what needs the whole model, and a model that no file gives by block."""

from __future__ import annotations

from omegaconf import DictConfig

from sparsemend.checkpoint.model import Model
from sparsemend.checkpoint.quantisation import quantisation_settings
from sparsemend.config.streaming import obstacle


def check_streaming(cfg: DictConfig, model: Model) -> None:
    """Raise ValueError where hardware.stream=true and something chosen cannot work by block.

    What a model of the hub is, its loading finds.
    """
    if cfg.hardware.get("stream") is not True:
        return
    if (reason := obstacle(cfg) or _without_blocks(cfg.model, model)) is not None:
        raise ValueError(f"hardware.stream=true: {reason}; set hardware.stream=false")


def _without_blocks(section: DictConfig, model: Model) -> str | None:
    """The reason why no block of this model can be read by itself, None where none is seen."""
    if "architecture" in section:
        return f"the weights of model={section.name} are made at random, and lie in no file"
    if model.pickled:
        return f"the weights of model {model.path} are pickled"
    if model.config is not None and any(True for _ in quantisation_settings(model.config.values)):
        return f"model {model.path} is quantised"
    return None

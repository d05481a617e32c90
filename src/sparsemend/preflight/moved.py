"""Refuse beside from_run a model that is not the one whose run is measured again.

A run's dense model may have moved, so that the command line says where it is now (model.path).  No
digest of it is kept; what the exported model and the folder say of their sizes must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from sparsemend.checkpoint.headers import TensorShape
from sparsemend.checkpoint.linears import linear_shapes
from sparsemend.checkpoint.model import Model, find_model
from sparsemend.result.finished import finished_run


def check_moved(cfg: DictConfig, model: Model) -> None:
    """Raise ValueError where the blocks of `model` have other linears than the run's own model.

    model: of the config's `model`.  Nothing is known of one on the hub.
    """
    if cfg.get("from_run") is None or model.blocks is None or "path" not in cfg.model:
        return
    run = finished_run(cfg.from_run)
    if run.result.config["model"].get("path") == cfg.model.path:
        return
    section = OmegaConf.merge(cfg.model, {"path": str(run.model)})
    assert isinstance(section, DictConfig)
    exported = find_model(section)
    if exported.blocks is None:
        return
    ours, theirs = _sizes(model), _sizes(exported)
    if ours != theirs:
        size = min((ours - theirs) or (theirs - ours))
        raise ValueError(
            f"model.path={cfg.model.path} is not the model of from_run={cfg.from_run}: its blocks "
            f"have {ours[size]} linears of size {size}, those of the run {theirs[size]}; give the "
            "folder to which that model has moved"
        )


def _sizes(model: Model) -> Counter[TensorShape]:
    """(O, I) -> how many linears of the blocks have it."""
    blocks: Mapping[str, TensorShape] = model.blocks or {}
    config = model.config.values if model.config is not None else None
    return Counter(linear_shapes(blocks, config).values())

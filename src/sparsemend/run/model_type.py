"""The model type of a model that is not loaded yet, and what follows from it for its windows."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sparsemend.checkpoint.model import read_config
from sparsemend.config.locations import is_local, resolve_path
from sparsemend.data.bos import asks_for_auto, needs_bos, resolve_bos_
from sparsemend.errors import blame

log = logging.getLogger(__name__)


def with_bos(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> DictConfig:
    """`cfg` with every `bos: auto` of its data as true or false, a copy where there is one.

    tokenizer: tells the model where the config is not about it.
    """
    if not asks_for_auto(cfg.data):
        return cfg
    resolved = copy.deepcopy(cfg)
    kind = model_type(cfg.model) if tokenizer is None else type_at(tokenizer.name_or_path)
    if kind is None:
        log.warning(
            "data.bos=auto: nothing says what model these windows are for, so they begin without "
            "BOS; set data.bos=true for one that needs it, as the Gemma families do"
        )
    resolve_bos_(resolved.data, needs_bos(kind))
    return resolved


def model_type(model: DictConfig) -> str | None:
    """The type of a model of the group `model`, such as llama; None where nothing tells."""
    if "architecture" in model:
        return str(model.architecture.model_type)
    return type_at(str(model.get("path", "")), revision=model.get("revision"))


def type_at(path: str, *, revision: str | None = None) -> str | None:
    """The model type that a local folder or a hub id states, None without a config there."""
    folder = Path(resolve_path(path))
    if (folder / "config.json").is_file():
        return read_config(folder).values.get("model_type")
    if not path or folder.is_dir() or is_local(path):
        return None
    with blame(f"data.bos=auto asks for the config of {path}", "set data.bos=true or false"):
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    return values.get("model_type")

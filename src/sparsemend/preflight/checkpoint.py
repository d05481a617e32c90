"""Refuse a model folder that would not be loaded whole, by its config.json and its headers alone.

What only the class of the model can tell is refused when it is loaded: the room pretrained/.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.architecture import Architecture, installed_tables
from sparsemend.checkpoint.model import Model, check_pickled
from sparsemend.checkpoint.names import check_names
from sparsemend.checkpoint.places import check_places
from sparsemend.checkpoint.quantisation import check_packed
from sparsemend.checkpoint.tokenizer import check_tokenizer
from sparsemend.config.locations import resolve_path


def check_checkpoint(section: DictConfig, model: Model) -> None:
    """Raise ValueError or FileNotFoundError on a folder that is not a loadable causal LM.

    section: the config's `model`.  A model on the hub, and random weights, pass.
    """
    folder = Path(resolve_path(model.path))
    if model.config is None or "architecture" in section or not folder.is_dir():
        return
    trusted = section.get("trust_remote_code") is True
    tables = installed_tables()
    if tables is not None:
        kind = Architecture.of(model.config.values)
        kind.check(model.path, tables, trust_remote_code=trusted)
    if model.pickled:
        check_pickled(model.path, trust_remote_code=trusted)
    if model.tensors is not None:
        check_packed(model.path, model.config.values, model.tensors)
        shapes = {name: header.shape for name, header in model.tensors.items()}
        check_names(model.path, model.config, shapes)
        if tables is not None:
            check_places(model.path, model.config.values, shapes, tables)
    check_tokenizer(folder)

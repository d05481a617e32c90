"""Refuse a model folder that would not be loaded whole, by its config.json and its headers alone.

What only the class of the model can tell is refused when it is loaded: the room pretrained/.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.architecture import Architecture, installed_tables
from sparsemend.checkpoint.model import Model, check_pickled
from sparsemend.checkpoint.names import check_names
from sparsemend.checkpoint.quantisation import check_packed
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
        check_names(model.path, model.config, {n: h.shape for n, h in model.tensors.items()})
    check_tokenizer(folder)


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError where the only tokenizer is a file for which a package is missing."""
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return
    if find_spec("sentencepiece") is None:
        raise ValueError(
            f"model folder {folder} has a tokenizer.model and no tokenizer.json, and only the "
            "package sentencepiece reads it; pip install 'sparsemend[sentencepiece]'"
        )

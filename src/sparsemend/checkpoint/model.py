"""Read what this machine knows of a model before loading it: config.json, safetensors headers.

Each family has its own names for the few numbers that checks need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsemend.checkpoint.gguf import ready_section
from sparsemend.checkpoint.headers import (
    TensorHeader,
    TensorShape,
    json_object,
    read_checkpoint_headers,
)
from sparsemend.checkpoint.linears import DEPTHS, NESTED, block_tensors
from sparsemend.checkpoint.quantisation import check_no_gguf, check_quantisation
from sparsemend.config.locations import is_local, resolve_path, tilde_hint
from sparsemend.names import MODEL, RESULT

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


@dataclass(frozen=True)
class ModelConfig:
    """A config.json as read."""

    values: dict[str, Any]

    @property
    def blocks(self) -> int | None:
        """Number of decoder blocks L, or None where the config does not state it."""
        entry = self._first(DEPTHS)
        return entry[1] if entry else None

    @property
    def positions(self) -> tuple[str, int] | None:
        """(key, longest context) as stated, or None."""
        return self._first(POSITIONS)

    @property
    def vocabulary(self) -> int | None:
        """Number of embeddings, or None where the config does not state it."""
        entry = self._first(("vocab_size",))
        return entry[1] if entry else None

    def _first(self, names: tuple[str, ...]) -> tuple[str, int] | None:
        inner = [self.values[key] for key in NESTED if isinstance(self.values.get(key), dict)]
        for level in (*inner, self.values):
            for name in names:
                if type(level.get(name)) is int:
                    return name, level[name]
        return None


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a model folder; raises FileNotFoundError, or ValueError on broken JSON."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"model folder {folder} has no config.json; give model.path a folder written by "
            "save_pretrained"
        )
    return ModelConfig(json_object(path))


def model_folder(folder: Path) -> Path:
    """The model/ of a run folder, and any other folder itself.

    Raises FileNotFoundError where the run was not exported.
    """
    if not (folder / RESULT).is_file():
        return folder
    if not (folder / MODEL).is_dir():
        raise FileNotFoundError(
            f"{folder} is a run folder without a {MODEL}/; repeat its run with export=true"
        )
    return folder / MODEL


@dataclass(frozen=True)
class Model:
    """A model before it is loaded: its configuration, and the tensor shapes inside its blocks.

    tensors: of the whole checkpoint.  Both it and `blocks` are None without safetensors headers at
    hand: the model is on the hub, or its weights are pickled (then `pickled`).
    """

    path: str
    config: ModelConfig | None  # None: on the hub, known only after a download
    blocks: dict[str, TensorShape] | None
    tensors: Mapping[str, TensorHeader] | None = None
    pickled: bool = False

    @property
    def parameters(self) -> int | None:
        """Of the whole checkpoint; None without its headers."""
        if self.tensors is None:
            return None
        return sum(prod(header.shape) for header in self.tensors.values())


def check_pickled(path: str, *, trust_remote_code: bool) -> None:
    """Raise ValueError on a folder with pickled weights only, unless its source is trusted."""
    if not trust_remote_code:
        raise ValueError(
            f"model {path} has pickled weights (.bin) and no safetensors, and a pickle can carry "
            "code; save the model again with save_pretrained, or, if you trust its source, set "
            "model.trust_remote_code=true"
        )


def find_model(model: DictConfig) -> Model:
    """The model of a `model` group; of a GGUF file once it is turned into a folder.

    Raises FileNotFoundError on an incomplete or missing folder, ValueError on a quantised model.
    """
    if "architecture" in model:
        settings = OmegaConf.to_container(model.architecture, resolve=True)
        assert isinstance(settings, dict)
        architecture = {str(key): value for key, value in settings.items()}
        config = ModelConfig({"vocab_size": model.get("vocabulary"), **architecture})
        return Model(str(model.name), config, None)
    path = str(model.get("path", ""))
    ready_section(model)
    folder = Path(resolve_path(path))
    if not folder.is_dir():
        if is_local(path):
            raise FileNotFoundError(
                f"model folder {folder} does not exist; give model.path a folder with config.json "
                "and weights, or a hub id such as org/name" + tilde_hint(path)
            )
        return Model(path, None, None)
    config = read_config(folder)
    check_quantisation(path, config.values)
    check_no_gguf(folder)
    tensors = {name: header for name, (_, header) in read_checkpoint_headers(folder).items()}
    if not tensors:
        return Model(path, config, None, pickled=True)
    shapes = {name: header.shape for name, header in tensors.items()}
    return Model(path, config, block_tensors(shapes, config.values), tensors)

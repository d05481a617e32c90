"""Model folders that are wrong in one way: a random LLaMA, with its tensors or config changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def changed(
    folder: Path,
    base: Path,
    *,
    tensors: Callable[[Tensors], Tensors] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A copy of the model folder `base` with other tensors, or other lines of its config."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    if tensors is not None:
        save_file(tensors(load_file(base / WEIGHTS)), folder / WEIGHTS)
    if config is not None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(values | dict(config)))
    return folder


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)
    }


def fused_attention(tensors: Tensors) -> Tensors:
    """q, k and v of a block in one matrix, as other families have them."""
    fused = without("q_proj", "k_proj", "v_proj")(tensors)
    for name in [name for name in tensors if "q_proj" in name]:
        parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
    return fused


def packed(tensors: Tensors) -> Tensors:
    """An MLP matrix of a block under the name and in the type of a 4-bit packer."""
    others = without("up_proj")(tensors)
    chosen = {name: tensor.int() for name, tensor in tensors.items() if name not in others}
    return others | {name.replace(".weight", ".qweight"): t for name, t in chosen.items()}


def pickled(folder: Path, base: Path, tensors: Mapping[str, Any] | None = None) -> Path:
    """A folder with the config of `base` and a pickle in place of its safetensors."""
    folder.mkdir(exist_ok=True)
    shutil.copy(base / CONFIG, folder)
    torch.save(dict(tensors or load_file(base / WEIGHTS)), folder / "pytorch_model.bin")
    return folder

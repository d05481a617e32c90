"""Loads a packed model folder: a model of its class with a PackedLinear for every packed linear.

The loader of transformers fills the model, as it does that of an ordinary checkpoint, but that the
tensors which packed linears stand for have no values.  Every tensor lies where its file is mapped
into memory, so what is resident is what the files hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from sparsemend.checkpoint.headers import TensorHeader
from sparsemend.checkpoint.model import model_folder
from sparsemend.checkpoint.packed import PackedFolder, read_packed
from sparsemend.engine.file import load_packed
from sparsemend.engine.linear import PackedLinear
from sparsemend.layout.unfold import unfold_
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.stored import DTYPES, ShapeAlone, StoredTensor
from sparsemend.pretrained.streamed import shell_of

COMPUTED = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class PackedCheckpoint(Checkpoint):
    """A folder whose weights are packed; config, tokenizer and the rest are ordinary."""

    def _files(self) -> list[Path] | None:
        return []


def load_packed_model(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of a folder that an export with export_form=packed wrote, for inference.

    folder: a model folder, or that of its run.  In eval mode, with caching on, on the CPU; `.to`
    moves it to a card.  dtype: of activations and of what is not packed, float32 or bfloat16; None
    as it was exported.  attention: None for the model's own choice.  Raises ValueError or
    FileNotFoundError with the cause in one line.
    """
    folder = model_folder(Path(folder))
    if dtype not in (None, *COMPUTED):
        raise ValueError(f"dtype {dtype} is not one of: {', '.join(map(str, COMPUTED))}")
    described = read_packed(folder)
    checkpoint = PackedCheckpoint(
        path=str(folder), revision=None, trust_remote_code=trust_remote_code
    )
    config = checkpoint.checked_config(attention)
    dtype = dtype or dtype_of(config)
    if dtype not in COMPUTED:
        raise ValueError(
            f"{folder / 'config.json'} gives the dtype {dtype}, and packed weights are multiplied "
            "by float32 and bfloat16; ask for one of them as dtype (--dtype)"
        )
    linears: dict[str, PackedLinear] = {}
    others: dict[str, Tensor] = {}
    for file in described.files:
        in_file, rest = load_packed(file)
        linears |= in_file
        others |= rest
    model = checkpoint.load_by(
        type(shell_of(checkpoint, config, dtype, attention)).from_pretrained,
        config,
        dtype=dtype,
        attention=attention,
        state={**others, **_without_values(described)},
    )
    unfold_(model)
    for name, linear in linears.items():
        _put_(model, name, linear, described, folder)
    _check_whole(model, folder)
    vars(model)["save_pretrained"] = _refuse_to_save
    model.config.use_cache = True
    return model.eval().requires_grad_(False)


@torch.no_grad()
def load_unpacked(
    folder: Path, *, dtype: torch.dtype, attention: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    """The same model with an nn.Linear for every packed one, unfolded, caching off, to be changed.

    Where values are not int8, weights have the bits that they had before they were packed.
    """
    model = load_packed_model(
        folder, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code
    )
    for name, packed in packed_linears(model).items():
        linear = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(packed.weight.to(dtype))
        if packed.bias is not None:
            linear.bias = nn.Parameter(packed.bias.to(dtype))
        model.set_submodule(name, linear)
    del vars(model)["save_pretrained"]
    model.config.use_cache = False
    return model.requires_grad_(True)


def dtype_of(config: PreTrainedConfig) -> torch.dtype:
    """The dtype that a config says its weights have, float32 where it says none."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def packed_linears(model: nn.Module) -> dict[str, PackedLinear]:
    """The packed linears of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}


def _without_values(described: PackedFolder) -> dict[str, ShapeAlone]:
    """What stands for the tensors that are packed: shapes alone."""
    return {
        name: ShapeAlone(StoredTensor(described.files[0], TensorHeader(dtype, shape, 0)))
        for name, (dtype, shape) in described.instead_of.items()
        if dtype in DTYPES
    }


def _put_(
    model: PreTrainedModel, name: str, linear: PackedLinear, described: PackedFolder, folder: Path
) -> None:
    """Put a packed linear where the model has one of its shape; ValueError where it has none."""
    shape = (linear.out_features, linear.in_features)
    try:
        before: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        before = None
    if not isinstance(before, nn.Linear) or tuple(before.weight.shape) != shape:
        what = "no such linear" if not isinstance(before, nn.Linear) else "another shape there"
        raise ValueError(
            f"{folder} holds {name} {shape} packed, and {type(model).__name__} of transformers "
            f"{transformers.__version__} has {what}; it was written with {described.writer}: "
            "export the run again, or give the folder its own config.json"
        )
    if (before.bias is None) != (linear.bias is None):
        has = "a bias" if linear.bias is not None else "no bias"
        raise ValueError(f"{folder} holds {name} with {has}, and its config.json says otherwise")
    model.set_submodule(name, linear)


def _check_whole(model: PreTrainedModel, folder: Path) -> None:
    """Raise ValueError where a weight of the model was in no file."""
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if left:
        raise ValueError(
            f"{folder} holds no values of {left[0]} ({len(left)} weights like it); export it again"
        )


def _refuse_to_save(*arguments: object, **settings: object) -> NoReturn:
    raise ValueError(
        "a packed model is written by its export; copy its folder, or export the run again with "
        "export_form=dense for a checkpoint that transformers loads"
    )

"""A checkpoint as a skeleton: all of its model but the weights of the decoder blocks.

The loader of transformers fills both: once the whole model, from tensors without values where they
belong to a block, and whenever a block is read the modules of that block, from its own tensors.  So
names, casts, fusions and what is refused are those of a model in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from sparsemend.blocks.find import find_blocks
from sparsemend.checkpoint.headers import read_checkpoint_headers, weight_files
from sparsemend.config.values import digest
from sparsemend.errors import CannotStream
from sparsemend.layout.unfold import unfold_
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.stored import ShapeAlone, StoredTensor, stored_tensors


@dataclass(frozen=True)
class BlockFiles:
    """The blocks of a checkpoint, in its files.

    shell: a model of its class without a weight, whose blocks are filled one at a time.  tensors:
    by block, under the names of the files.
    """

    shell: PreTrainedModel
    tensors: Sequence[Mapping[str, StoredTensor]]
    settings: LoadStateDictConfig

    def read(self, index: int) -> dict[str, Tensor]:
        """The tensors of one block on the host, unfolded, by their names in the block."""
        block = find_blocks(self.shell)[1][index]
        self._check_unchanged(index)
        try:
            self._load(self.tensors[index])
            tensors = [*block.parameters(), *block.buffers()]
            whole = copy.deepcopy(block, {id(tensor): tensor for tensor in tensors})
            del tensors
        finally:
            let_go_(block)
        unfold_(whole)
        return dict(whole.state_dict())

    def _load(self, tensors: Mapping[str, Any]) -> Any:
        """Fill modules of the shell; returns what the loader says of it."""
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return convert_and_load_state_dict_in_model(self.shell, dict(tensors), self.settings)[0]
        finally:
            if shown:
                logging.enable_progress_bar()

    def _check_unchanged(self, index: int) -> None:
        """Raise ValueError where a file of a block was written since the model was opened."""
        for path in {tensor.path for tensor in self.tensors[index].values()}:
            if _facts_of(path) != self.written[path]:
                raise ValueError(
                    f"{path} was changed while its blocks were being read; let it be, and start "
                    "again"
                )

    @cached_property
    def written(self) -> dict[Path, list[int]]:
        """Size and time of writing of every file, as the model was opened."""
        paths = {tensor.path for block in self.tensors for tensor in block.values()}
        return {path: _facts_of(path) for path in sorted(paths)}

    @cached_property
    def source(self) -> str:
        """A hash of the files, by their headers, sizes and times of writing, and of the dtype."""
        headers = [
            [name, str(t.path.resolve()), t.header.dtype, list(t.shape), t.header.begin]
            for block in self.tensors
            for name, t in block.items()
        ]
        return digest([headers, list(self.written.values()), str(self.settings.dtype)])

    def check(self, path: str) -> None:
        """Raise CannotStream where a block is not made of tensors of its own."""
        assert self.written  # noted here, before a block is read
        prefix, blocks = find_blocks(self.shell)
        for index, block in enumerate(blocks):
            without = {name: ShapeAlone(t) for name, t in self.tensors[index].items()}
            info = self._load(without)
            name = f"{prefix}.{index}"
            missing = {f"{name}.{key}" for key in block.state_dict()} & info.missing_keys
            if missing or info.conversion_errors:
                culprit = min(missing, default=name)
                raise CannotStream(f"{culprit} is in no tensor of model {path} that is its own")


def open_skeleton(
    checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str | None
) -> tuple[PreTrainedModel, BlockFiles]:
    """The model in eval mode on the CPU, its blocks on the meta device, and where these lie.

    Neither is unfolded.  Raises CannotStream where its blocks cannot be read one by one, and the
    errors of `Checkpoint.load`.
    """
    config = checkpoint.checked_config(attention)
    stored = _tensors_of(checkpoint, config)
    shell = shell_of(checkpoint, config, dtype, attention)
    mapping: Any = get_model_conversion_mapping(shell)
    settings = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=shell._get_dtype_plan(dtype),
        weight_mapping=mapping,
    )
    tensors = _by_block(shell, stored, settings)
    inside = {name for block in tensors for name in block}
    state = {name: ShapeAlone(t) if name in inside else t for name, t in stored.items()}
    model = checkpoint.load_by(
        type(shell).from_pretrained, config, dtype=dtype, attention=attention, state=state
    )
    _check_ties(checkpoint.path, model)
    files = BlockFiles(shell, tensors, settings)
    files.check(checkpoint.path)
    return model, files


def let_go_(block: nn.Module) -> None:
    """Put tensors without values in the place of those of a block, which stay as they are.

    `block.to("meta")` may turn the very tensors, as torch.__future__ or a device's module says.
    """
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="meta")


def _facts_of(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int | None:
    """Bytes of the weights in `dtype`; None where there are no safetensors."""
    folder = checkpoint.folder()
    headers = {} if folder is None else read_checkpoint_headers(folder)
    weights = sum(prod(header.shape) for _, header in headers.values())
    return weights * dtype.itemsize if headers else None


def _tensors_of(checkpoint: Checkpoint, config: PreTrainedConfig) -> dict[str, StoredTensor]:
    """The tensors by name; raises CannotStream where no file has any to be read by name."""
    for level in (config, config.get_text_config()):
        if getattr(level, "quantization_config", None) is not None:
            raise CannotStream(f"model {checkpoint.path} is quantised")
    folder = checkpoint.folder()
    if folder is None:
        raise CannotStream(f"the hub has no safetensors of model {checkpoint.path} to be had here")
    files = weight_files(folder)
    if not files:
        raise CannotStream(f"the weights of model {checkpoint.path} are pickled")
    return {name: tensor for file in files for name, tensor in stored_tensors(file).items()}


def shell_of(
    checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype, attention: str | None
) -> PreTrainedModel:
    """A model of the class that the config names, without a weight."""
    settings: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    with checkpoint.blame("be loaded"), torch.device("meta"):
        shell: PreTrainedModel = checkpoint.auto_class(config).from_config(
            copy.deepcopy(config),
            dtype=dtype,
            trust_remote_code=checkpoint.trust_remote_code,
            **settings,
        )
    return shell.requires_grad_(False).eval()


def _by_block(
    shell: PreTrainedModel, stored: Mapping[str, StoredTensor], settings: LoadStateDictConfig
) -> list[dict[str, StoredTensor]]:
    """The stored tensors that each block is made of."""
    prefix, blocks = find_blocks(shell)
    names = shell.state_dict()
    mapping = settings.weight_mapping or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    tensors: list[dict[str, StoredTensor]] = [{} for _ in blocks]
    for name, tensor in stored.items():
        base = shell.base_model_prefix
        target, _ = rename_source_key(name, renamings, converters, base, names)
        if target not in names and name in names:
            target = name
        number, _, rest = target.removeprefix(f"{prefix}.").partition(".")
        inside = target.startswith(f"{prefix}.") and rest and number.isdigit()
        if inside and int(number) < len(blocks):
            tensors[int(number)][name] = tensor
    return tensors


def _check_ties(path: str, model: nn.Module) -> None:
    """Raise CannotStream where a block shares a tensor with another part of the model."""
    blocks = find_blocks(model)[1]
    owners: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            if owners.setdefault(id(parameter), index) != index:
                raise CannotStream(f"blocks of model {path} share a weight")
            if not parameter.is_meta:
                raise CannotStream(f"a block of model {path} has a weight from outside it")
    inside = set(blocks.modules())
    for module in (m for m in model.modules() if m not in inside):
        for parameter in module.parameters(recurse=False):
            if id(parameter) in owners or parameter.is_meta:
                raise CannotStream(f"a block of model {path} shares a weight with what is outside")

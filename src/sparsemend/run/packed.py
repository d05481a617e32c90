"""The packed export: a model folder whose sparse linears are bits and packed values.

What lies outside the blocks is written by the model's own class, and block after block follows:
its sparse linears packed on their supports, the rest under the names of an ordinary checkpoint.  So
one block of a model that streams is in memory at a time.  A tensor of the checkpoint that holds
several linears, such as all experts of a layer, is packed whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.names import saved_name
from sparsemend.blocks.residency import streams, visit_blocks
from sparsemend.checkpoint.packed import INSTEAD_OF, WRITER
from sparsemend.engine.convert import pack_linear
from sparsemend.engine.file import save_packed
from sparsemend.engine.linear import PackedLinear
from sparsemend.engine.packed import pack_weight
from sparsemend.layout.saved import BlockState, block_states
from sparsemend.layout.unfold import fold_within
from sparsemend.run.streamed import WHOLE
from sparsemend.sparse.linear import SparseLinear

SHARD = 2**30  # bytes from which on a file is closed and another begun
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save_packed_model(model: PreTrainedModel, folder: Path, *, values: str) -> None:
    """Write config and weights into `folder`, values stored as float32, bfloat16 or int8.

    The model, of which linears may be sparse and blocks may lie in files, stays as it is.  Raises
    ValueError naming the linear that cannot be packed, and where there is none to pack.
    """
    files = _Files(folder, each_block=streams(model))
    files.add({}, _save_outside(model, folder), {})
    packed = 0
    for state, (_, _, _) in zip(block_states(model), visit_blocks(model), strict=True):
        block = PackedBlock(state)
        linears = {name: _pack(model, name, m, values) for name, m in block.packed.items()}
        files.add(linears, block.others(), block.instead_of)
        packed += len(linears)
    if not packed:
        raise ValueError(
            "export_form=packed: no linear of the decoder blocks has a zero, so there is nothing "
            "to pack; set export_form=dense"
        )
    files.finish()


def _save_outside(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Write config and generation config; the tensors outside the blocks, as the class saves them.

    The class is shown a model whose list of blocks is empty.
    """
    prefix, blocks = find_blocks(model)
    file = folder / "model.safetensors"
    try:
        model.set_submodule(prefix, nn.ModuleList())
        with fold_within(model):
            # its class's: a model in Python's hands has a method of its own
            type(model).save_pretrained(model, folder, max_shard_size=WHOLE)
    finally:
        model.set_submodule(prefix, blocks)
    tensors = load_file(file)
    file.unlink()  # what is mapped stays
    return tensors


@torch.no_grad()
def _pack(model: nn.Module, name: str, linear: nn.Linear, values: str) -> PackedLinear:
    try:
        if isinstance(linear, SparseLinear):
            return pack_linear(linear, values=values)
        keep = torch.ones(linear.weight.shape, dtype=torch.bool)
        packed = pack_weight(linear.weight.cpu(), keep=keep, values=values)
        return PackedLinear(packed, None if linear.bias is None else linear.bias.cpu())
    except ValueError as error:
        raise ValueError(f"export_form=packed: {saved_name(model, name)}: {error}") from error


class PackedBlock:
    """Which linears of a block, which is resident, are packed, and what is saved beside them.

    packed: by module name.  instead_of: dtype and shape of the saved tensors that they stand for.
    """

    def __init__(self, state: BlockState) -> None:
        self.state = state
        self.linears = {name.removesuffix(".weight"): m for name, m in state.linears.items()}
        names: set[str | None] = {n for n, m in self.linears.items() if _loses(m)}
        while more := {o for o in self._owners.values() if o & names and not o <= names}:
            names |= {name for owners in more for name in owners}
        if None in names:
            mixed = next(saved for saved, owners in self._owners.items() if None in owners & names)
            raise ValueError(
                f"export_form=packed: {mixed} holds more than linears; set export_form=dense"
            )
        self.packed = {name: m for name, m in self.linears.items() if name in names}
        self.instead_of = {
            saved: self._facts(saved) for saved, owners in self._owners.items() if owners <= names
        }

    def others(self) -> dict[str, Tensor]:
        """The tensors that are saved as they are, by saved name."""
        names = [saved for saved in self._owners if saved not in self.instead_of]
        if all(name in self.state.renamed for name in names):
            tensors = self.state.block.state_dict(prefix=f"{self.state.name}.")
            return {name: tensors[self.state.renamed[name]] for name in names}
        saved = self.state.saved_tensors()
        return {name: saved[name] for name in names}

    @cached_property
    def _owners(self) -> dict[str, frozenset[str | None]]:
        """By saved tensor, the linears whose weights or biases it holds; None: something else."""
        renamed = {s: frozenset([self._owner(name)]) for s, name in self.state.renamed.items()}
        numbers: list[str | None] = [*self.linears, None]
        moved = {
            saved: frozenset(numbers[number] for number in code.unique().tolist())
            for saved, code in self._sent.items()
        }
        return renamed | moved

    @cached_property
    def _sent(self) -> dict[str, Tensor]:
        """The saved tensors that are moved, with the number of the linear in place of weights."""
        numbers = {name: number for number, name in enumerate(self.linears)}

        def number(name: str, like: Tensor) -> Tensor:
            owner = self._owner(name)
            return torch.full(like.shape, -1 if owner is None else numbers[owner]).short()

        return self.state.send(number)

    def _owner(self, name: str) -> str | None:
        linear, _, part = name.rpartition(".")
        return linear if part in ("weight", "bias") and linear in self.linears else None

    def _facts(self, saved: str) -> list[object]:
        owner = next(name for name in self._owners[saved] if name is not None)
        like = self._sent.get(saved)
        if like is None:
            like = self.state.state[self.state.renamed[saved]]
        return [NAMES[self.linears[owner].weight.dtype], list(like.shape)]


def _loses(linear: nn.Linear) -> bool:
    """Whether a linear has a support that is not whole."""
    return isinstance(linear, SparseLinear) and not bool(linear.keep.all())


@dataclass
class _Files:
    """The files of packed weights, each written when it is full; their number stands at the end."""

    folder: Path
    each_block: bool
    linears: dict[str, PackedLinear] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    instead_of: dict[str, list[object]] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def add(
        self,
        linears: Mapping[str, PackedLinear],
        others: Mapping[str, Tensor],
        instead_of: Mapping[str, list[object]],
    ) -> None:
        self.linears |= linears
        self.others |= {name: tensor.contiguous() for name, tensor in others.items()}
        self.instead_of |= instead_of
        held = [b for m in self.linears.values() for b in m.buffers()] + [*self.others.values()]
        if self.each_block or sum(tensor.nbytes for tensor in held) >= SHARD:
            self._write()

    def finish(self) -> None:
        if self.linears or self.others:
            self._write()
        for number, path in enumerate(self.written, start=1):
            path.rename(
                path.with_name(f"packed-{number:05d}-of-{len(self.written):05d}.safetensors")
            )

    def _write(self) -> None:
        path = self.folder / f"packed-{len(self.written) + 1:05d}.safetensors"
        notes = {INSTEAD_OF: json.dumps(self.instead_of), WRITER: transformers.__version__}
        save_packed(path, self.linears, self.others, notes)
        self.written.append(path)
        self.linears, self.others, self.instead_of = {}, {}, {}

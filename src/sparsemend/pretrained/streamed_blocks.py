"""The residency of a skeleton: a block comes in from files, and goes out to a file if changed.

A changed block is one file, `FOLDER/STAGE/00017.safetensors`: its tensors by their names in the
block, packed supports among them, written beside its place and moved onto it.  Its metadata hold
the key of all that decides it and a fingerprint, of which the next block's file repeats the one
before; so what a killed run left is an unbroken row of blocks of one attempt or its continuations.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsemend.blocks.find import find_blocks
from sparsemend.blocks.plain import LinearLike
from sparsemend.blocks.residency import Carried, Residency, attach_residency, home_of
from sparsemend.blocks.room import return_freed
from sparsemend.checkpoint.headers import read_header, read_metadata
from sparsemend.config.values import digest
from sparsemend.files import replacing
from sparsemend.layout.unfold import unfold_
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.stored import stored_tensors
from sparsemend.pretrained.streamed import BlockFiles, open_skeleton
from sparsemend.sparse.linear import SparseLinear

log = logging.getLogger(__name__)

FORMAT = "sparsemend-block-1"
SUPPORT = ".packed_keep"


class Streamed(Residency):
    """The blocks of a model that lie in files: those it was opened from, then its own.

    files: the blocks as they were opened.  folder: for changed ones; None: the model stays as it
    was opened.  A changed block's earlier file goes, unless a later attempt may take it up.
    """

    streams = True

    def __init__(self, model: nn.Module, files: BlockFiles, folder: Path | None) -> None:
        self._model, self._source, self.folder = model, files, folder
        self._blocks = find_blocks(model)[1]
        self._resident: dict[int, bool] = {}  # whether what is changed will be kept
        self._files: dict[int, Path] = {}  # of changed blocks
        self._stamps: dict[int, str] = {}  # theirs, and that of the one that is being changed
        self._stage, self._key = "changed", ""
        self._resumable: set[str] = set()  # stages that a later attempt may take up
        self._finished = 0
        self._dtype: torch.dtype | None = None  # of weights as they are read; None: as they are

    @property
    def place(self) -> Path | None:
        return self.folder

    @contextmanager
    def resident(
        self,
        index: int,
        device: torch.device,
        *,
        offload: bool = False,
        changes: bool = False,
        carried: Carried | None = None,
    ) -> Iterator[nn.Module]:
        block = self._blocks[index]
        if index in self._resident:  # whoever brought it in takes it back
            if changes and not self._resident[index]:
                raise RuntimeError(f"block {index} of this streamed model is there to be read only")
            yield block
            return
        if changes and self.folder is None:
            raise RuntimeError("this streamed model has no folder for changed blocks")
        self._resident[index] = changes
        if changes:
            self._draw(index)
        try:
            fill_(block, self._tensors(index), device)
            yield block
            if changes:
                self._keep(index, block, carried)
        finally:
            empty_(block, home_of(self._model))
            return_freed()
            del self._resident[index]

    def begin(self, stage: str, key: str | None = None) -> None:
        if self.folder is None:
            raise RuntimeError("this streamed model has no folder for changed blocks")
        taken = {file.parent.name for file in self._files.values()}
        while key is None and stage in taken:  # a model in Python's hands may be pruned twice
            stage += "-again"
        self._stage, self._key = stage, key or ""
        files = []
        if key is not None:
            self._resumable.add(stage)
            files = unbroken(self._place(0).parent, key, len(self._blocks))
        for index, file in enumerate(files):
            make_sparse_(self._blocks[index], file)
            self._files[index] = file
            self._stamps[index] = read_metadata(file)["fingerprint"]
        for left in self._place(0).parent.glob("*"):
            if left.is_dir():  # of a killed writer whose number another process has by now
                shutil.rmtree(left, ignore_errors=True)
            elif left not in files:
                left.unlink()
        self._finished = len(files)
        if files:
            log.info("%s: %d of %d blocks of the earlier attempt", stage, len(files), self._count)

    def take_up(self, carried: Carried | None = None) -> int:
        finished, self._finished = self._finished, 0
        if finished and carried is not None:
            carried.carry_on_(json.loads(read_metadata(self._place(finished - 1))["carried"]))
        return finished

    def stamp(self, index: int) -> str | None:
        return self._stamps.get(index)

    def fingerprint(self) -> str:
        changed = {str(index): self._stamps[index] for index in sorted(self._files)}
        return digest([self._source.source, changed])

    @property
    def _count(self) -> int:
        return len(self._blocks)

    def _place(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / self._stage / f"{index:05d}.safetensors"

    def _before(self, index: int) -> str:
        return self._stamps.get(index - 1, "")

    def _draw(self, index: int) -> None:
        """Draw the fingerprint of the block that is about to be changed.

        It is of this very attempt: what was computed after another is no continuation of it.
        """
        nonce = os.urandom(8).hex()
        self._stamps[index] = digest([self._key, index, self._before(index), nonce])

    def read_in(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def _tensors(self, index: int) -> dict[str, Tensor]:
        file = self._files.get(index)
        if file is None:
            tensors = self._source.read(index)
        else:
            tensors = {name: stored.read() for name, stored in stored_tensors(file).items()}
        return {name: self._in_dtype(tensor) for name, tensor in tensors.items()}

    def _in_dtype(self, tensor: Tensor) -> Tensor:
        rounds = self._dtype is not None and tensor.is_floating_point()
        return tensor.to(self._dtype) if rounds else tensor

    def _keep(self, index: int, block: nn.Module, carried: Carried | None) -> None:
        """Write a changed block, whole or not at all."""
        for name, module in block.named_modules():
            if isinstance(module, LinearLike) and type(module) is not SparseLinear:
                raise RuntimeError(f"{name} of a streamed block is a {type(module).__name__}")
        metadata = {
            "format": FORMAT,
            "key": self._key,
            "previous": self._before(index),
            "fingerprint": self._stamps[index],
            "carried": json.dumps({} if carried is None else carried.to_carry()),
        }
        tensors = {name: t.detach().cpu().contiguous() for name, t in block.state_dict().items()}
        place = self._place(index)
        before = self._files.get(index, place)
        with replacing(place) as partial:
            save_file(tensors, partial, metadata=metadata)
        self._files[index] = place
        if before != place and before.parent.name not in self._resumable:
            before.unlink()


def open_streamed(
    checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str | None, folder: Path | None
) -> PreTrainedModel:
    """A model in eval mode on the CPU, unfolded, whose blocks lie in files.

    folder: for changed blocks.  Raises CannotStream where blocks cannot be read one by one, and the
    errors of `Checkpoint.load`.
    """
    model, files = open_skeleton(checkpoint, dtype=dtype, attention=attention)
    unfold_(model)
    attach_residency(model, Streamed(model, files, folder))
    return model.eval().requires_grad_(False)


def unbroken(folder: Path, key: str, count: int) -> list[Path]:
    """The files of the first blocks, at most `count`, that one row of attempts with `key` wrote."""
    files: list[Path] = []
    fingerprint = ""
    for index in range(count):
        file = folder / f"{index:05d}.safetensors"
        if not file.is_file():
            break
        try:
            read_header(file)
            metadata = read_metadata(file)
        except (ValueError, OSError) as error:
            log.warning("%s, so it is computed again", error)
            break
        written = [metadata.get(name) for name in ("format", "key", "previous")]
        if written != [FORMAT, key, fingerprint]:
            break
        fingerprint = metadata["fingerprint"]
        files.append(file)
    return files


def make_sparse_(block: nn.Module, file: Path) -> None:
    """Make sparse, without values, the linears of a block that have a support in its file."""
    for key in read_header(file):
        name = key.removesuffix(SUPPORT)
        linear = block.get_submodule(name) if key.endswith(SUPPORT) else None
        if isinstance(linear, nn.Linear) and not isinstance(linear, SparseLinear):
            keep = torch.empty_like(linear.weight, dtype=torch.bool)
            block.set_submodule(name, SparseLinear(linear.weight, linear.bias, keep))


def fill_(block: nn.Module, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Give a block its tensors, on `device`, in place; the buffers that it holds go there too."""
    missing = block.state_dict().keys() - tensors.keys()
    assert not missing, missing
    for name, tensor in tensors.items():
        _put_(block, name, tensor.to(device))
    for name, buffer in list(block.named_buffers()):
        if name not in tensors:
            _put_(block, name, buffer.to(device))


def empty_(block: nn.Module, home: torch.device) -> None:
    """Take the tensors that a checkpoint has from a block, in place; its other buffers go home."""
    stored = block.state_dict().keys()
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if name in stored:
            _put_(block, name, torch.empty_like(tensor, device="meta"))
        else:
            _put_(block, name, tensor.to(home))


def _put_(block: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = block.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
        return
    before = module._parameters.get(leaf)
    trained = before is not None and before.requires_grad
    module._parameters[leaf] = nn.Parameter(tensor.detach(), requires_grad=trained)

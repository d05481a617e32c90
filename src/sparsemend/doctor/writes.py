"""What a run writes, by size: inside, files of tensors are recorded and left empty."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from sparsemend.doctor.ledger import Ledger
from sparsemend.pretrained.stored import DTYPES, StoredTensor
from sparsemend.run import cache as cache_module

NUMBERED = re.compile(r"\b[0-9a-f]{64}\b|(?<=\bblock_)\d+\b|\b\d{5}\b")
STORED = {dtype: code for code, dtype in DTYPES.items()}
PARTIAL = re.compile(r"^\.(.+?)(\.\d+)?(\.partial)?$")


class Unread(np.ndarray):
    """An array of a tensor without values: it takes no room, sorts at once and has no bytes."""

    @classmethod
    def of(cls, tensor: Tensor) -> Unread:
        like = torch.empty((), dtype=tensor.dtype, device="meta").dtype
        zero = np.zeros((), dtype=str(like).removeprefix("torch."))
        return np.broadcast_to(zero, tuple(tensor.shape)).view(cls)

    def sort(self, *settings: Any, **named: Any) -> None:
        return

    def tobytes(self, *settings: Any, **named: Any) -> bytes:
        return b""

    @property
    def data(self) -> memoryview:
        return memoryview(b"")


def _unread(tensor: Tensor) -> Unread:
    return Unread.of(tensor)


@dataclass
class Written:
    """Bytes of the files of tensors in a run folder, by their path in it, each at its largest."""

    folder: Path
    ledger: Ledger
    sizes: dict[str, int] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)  # what torch.load gives back, by shape

    def record(self, path: Path, size: int) -> None:
        name = self._name(path)
        self.sizes[name] = max(size, self.sizes.get(name, 0))

    def by_kind(self) -> dict[str, int]:
        """Bytes by path, where what is named by a hash or a number counts together as `*`."""
        sizes: dict[str, int] = {}
        for name, size in self.sizes.items():
            kind = NUMBERED.sub("*", name)
            sizes[kind] = sizes.get(kind, 0) + size
        return sizes

    def _name(self, path: Path) -> str:
        parts = _inside(path, self.folder).parts
        names = [_whole_name(part) for part in parts]
        # a file is written in a folder of its own: .best.ckpt.12.partial/best.ckpt.partial
        if len(parts) > 1 and parts[-2] != names[-2] and parts[-1].startswith(names[-2]):
            del names[-1]
        return "/".join(names)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write no tensors while the block runs, but note how many bytes they have."""
        with ExitStack() as stack:
            for target, name, replacement in (
                *((module, name, self.save_file) for module, name in _bindings()),
                (torch, "save", self._save),
                (torch, "load", self._load),
                (StoredTensor, "read", _read_without_values),
                (cache_module, "file_digest", str),
                (PreTrainedModel, "save_pretrained", _SavePretrained(self)),
            ):
                stack.enter_context(patch.object(target, name, replacement))
            stack.enter_context(patch.object(FakeTensor, "numpy", _unread))
            yield

    def save_file(
        self, tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.record(path, write_header(tensors, path, metadata or {}))

    def _save(self, content: Any, file: str | Path, *settings: Any, **named: Any) -> None:
        sizes: dict[int, int] = {}
        kept = tree_map(lambda leaf: _shape_of(leaf, sizes), content)
        self._kept.append(kept)
        Path(file).write_bytes(pickle.dumps(len(self._kept) - 1))
        self.record(Path(file), sum(sizes.values()))

    def _load(self, file: Any, *settings: Any, **named: Any) -> Any:
        """What was saved; a mapped file counts nothing, for the system takes its pages back."""
        kept = self._kept[pickle.loads(Path(file).read_bytes())]
        with self.ledger.pause() if named.get("mmap") else nullcontext():
            return tree_map(lambda leaf: leaf.empty() if isinstance(leaf, _Shape) else leaf, kept)


class _SavePretrained:
    """Stands for the method of every model, which writes from where the weights lie."""

    def __init__(self, written: Written) -> None:
        self.written = written

    def __get__(self, model: Any, kind: Any) -> Any:
        def save(folder: Any, *settings: Any, **named: Any) -> None:
            tensors = named.get("state_dict") or model.state_dict()
            whole = {name: t for name, t in tensors.items() if not t.is_meta}
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.written.save_file(whole, Path(folder) / "model.safetensors")

        return save


@dataclass(frozen=True)
class _Shape:
    """A tensor of a file, without its values, on the host."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype)


def _shape_of(leaf: Any, sizes: dict[int, int]) -> Any:
    """A stand-in for a tensor without values; notes the bytes of its storage."""
    if isinstance(leaf, Tensor):
        storage = leaf.untyped_storage()
        sizes[id(storage)] = storage.nbytes()
    return _Shape(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, FakeTensor) else leaf


def write_header(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> int:
    """A file of safetensors with a true header and a hole for the values; returns their bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        shape, dtype = list(tensor.shape), STORED[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def _read_without_values(stored: StoredTensor) -> Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype)


def _bindings() -> list[tuple[Any, str]]:
    """The modules of this package that write files of tensors, and what they call the writer."""
    return [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.startswith("sparsemend.")
        for name, value in vars(module).items()
        if value is save_file
    ]


def _inside(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def _whole_name(part: str) -> str:
    """The name of a file or folder once it is whole: `.best.ckpt.12.partial` is best.ckpt."""
    partial = PARTIAL.match(part)
    return part if partial is None else partial[1]

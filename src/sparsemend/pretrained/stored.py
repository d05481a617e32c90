"""One tensor of a safetensors file, read when it is asked for, into memory of its own.

A file that is mapped into memory keeps the pages that were touched; here a tensor's bytes are read
by position (pread) into a fresh tensor and nothing else stays.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch
from torch import Tensor

from sparsemend.checkpoint.headers import TensorHeader, read_header
from sparsemend.errors import CannotStream

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CHUNK = 2**30  # bytes of one read; the system gives 2 GiB at most


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.  `stored[...]` reads it, as the loader of transformers asks."""

    path: Path
    header: TensorHeader

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.header.dtype]

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.header.shape)

    def __getitem__(self, whole: EllipsisType) -> Tensor:
        return self.read()

    def read(self) -> Tensor:
        """The tensor, on the host; raises ValueError where the file is too short by now."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        view = tensor.flatten().view(torch.uint8).numpy().data
        file = os.open(self.path, os.O_RDONLY)
        try:
            done = 0
            while done < len(view):
                part = view[done : done + CHUNK]
                count = os.preadv(file, [part], self.header.begin + done)
                if not count:
                    raise ValueError(
                        f"{self.path} has become shorter since it was opened; copy or download it "
                        "again"
                    )
                done += count
        finally:
            os.close(file)
        return tensor


@dataclass(frozen=True)
class ShapeAlone:
    """A stored tensor of which only dtype and shape are of interest: it reads as a meta tensor."""

    stored: StoredTensor

    def __getitem__(self, whole: EllipsisType) -> ShapeAlone:
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor on the meta device, whatever `device` says."""
        return torch.empty(self.stored.shape, dtype=dtype or self.stored.dtype, device="meta")


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one file.

    Raises ValueError on a damaged one, and CannotStream where a dtype is none of DTYPES.
    """
    tensors = {name: StoredTensor(path, header) for name, header in read_header(path).items()}
    for name, tensor in tensors.items():
        if tensor.header.dtype not in DTYPES:
            raise CannotStream(f"{path} stores {name} as {tensor.header.dtype}")
    return tensors

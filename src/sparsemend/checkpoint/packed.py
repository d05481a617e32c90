"""A packed model folder as the names and headers of its files say it is, without a weight.

    packed-00001-of-00003.safetensors ...

Each file is of the format `sparsemend-packed-1` (engine/README.md).  Its metadata also say which
tensors of an ordinary checkpoint its packed linears stand for (`instead_of`), so that a loader of
the model's class misses none.  Other tensors have the names of an ordinary checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sparsemend.checkpoint.headers import BITS, TensorHeader, parse_json, read_header, read_metadata
from sparsemend.names import PACKED_FILES, PACKED_FORMAT

FILE = re.compile(r"packed-(\d{5})-of-(\d{5})\.safetensors")
INSTEAD_OF = "instead_of"
WRITER = "transformers"  # whose version named the modules
AGAIN = "copy it again, or export it again"


@dataclass(frozen=True, kw_only=True)
class PackedFolder:
    """What the files of a packed model folder hold.

    shapes: [outputs, inputs] of the packed linears, by module name.  instead_of: dtype and shape
    of the tensors that they stand for, by saved name.  headers: of every tensor, by its own name.
    writer: the version of transformers that named the modules.
    """

    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, int]]
    instead_of: Mapping[str, tuple[str, tuple[int, ...]]]
    headers: Mapping[str, TensorHeader]
    writer: str

    @property
    def values(self) -> str:
        """The dtype of the stored values, as safetensors names it."""
        name = next(iter(self.shapes), None)
        return self.headers[f"{name}.values"].dtype if name is not None else "none"

    @property
    def weights(self) -> int:
        """Of the packed linears, zeros included."""
        return sum(map(prod, self.shapes.values()))

    @property
    def packed_bytes(self) -> int:
        """Bytes of masks, values and scales."""
        parts = [f"{name}.{part}" for name in self.shapes for part in ("mask", "values", "scale")]
        return sum(_bytes(self.headers[part]) for part in parts if part in self.headers)

    @property
    def other_bytes(self) -> int:
        """Bytes of all that is not packed."""
        return sum(map(_bytes, self.headers.values())) - self.packed_bytes


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed model, whole or damaged."""
    return folder.is_dir() and any(folder.glob(PACKED_FILES))


def read_packed(folder: Path) -> PackedFolder:
    """What a packed model folder holds.

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged or foreign.
    """
    headers: dict[str, TensorHeader] = {}
    shapes: dict[str, tuple[int, int]] = {}
    instead_of: dict[str, tuple[str, tuple[int, ...]]] = {}
    writer = ""
    files = _files(folder)
    for path in files:
        tensors, metadata = read_header(path), read_metadata(path)
        if metadata.get("format") != PACKED_FORMAT:
            raise ValueError(
                f"{path} is not a {PACKED_FORMAT} file but {metadata.get('format')}; {AGAIN}"
            )
        if twice := tensors.keys() & headers.keys():
            raise ValueError(f"{path} and a file before it both hold {min(twice)}; {AGAIN}")
        headers |= tensors
        shapes |= _shapes(path, metadata, tensors)
        instead_of |= _instead_of(path, metadata)
        writer = metadata.get(WRITER, writer)
    return PackedFolder(
        files=files, shapes=shapes, instead_of=instead_of, headers=headers, writer=writer
    )


def _files(folder: Path) -> tuple[Path, ...]:
    """The files in their order; raises FileNotFoundError where one of the row is missing."""
    names = {path.name: path for path in folder.glob(PACKED_FILES) if FILE.fullmatch(path.name)}
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no packed weights ({PACKED_FILES}); give a folder that a run with "
            "export=true export_form=packed wrote"
        )
    counts = {int(match[2]) for name in names if (match := FILE.fullmatch(name))}
    if len(counts) > 1:
        raise ValueError(
            f"{folder} holds packed weights of several exports, of {min(counts)} and of "
            f"{max(counts)} files; {AGAIN}"
        )
    (count,) = counts
    row = [f"packed-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    if missing := [name for name in row if name not in names]:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of its {count} files of packed weights, first "
            f"{missing[0]}; {AGAIN}"
        )
    if foreign := sorted(names.keys() - set(row)):
        raise ValueError(f"{folder / foreign[0]} is none of its {count} files; {AGAIN}")
    return tuple(names[name] for name in row)


def _shapes(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorHeader]
) -> dict[str, tuple[int, int]]:
    """The shapes of the packed linears of one file, each of which has a mask and values."""
    shapes = {}
    for name, shape in _object(path, metadata, "shapes").items():
        if not _is_shape(shape) or len(shape) != 2 or not prod(shape):
            raise ValueError(f"{path} gives {name} the shape {shape}, which is no matrix; {AGAIN}")
        if f"{name}.mask" not in tensors or f"{name}.values" not in tensors:
            raise ValueError(f"{path}: {name} has no mask or no values; the file is damaged")
        shapes[name] = (shape[0], shape[1])
    return shapes


def _instead_of(path: Path, metadata: Mapping[str, str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    entries = {}
    for name, entry in _object(path, metadata, INSTEAD_OF).items():
        dtype, shape = entry if isinstance(entry, list) and len(entry) == 2 else ("", [])
        if not isinstance(dtype, str) or dtype not in BITS or not _is_shape(shape):
            raise ValueError(f"{path} does not say what {name} was, but {entry}; {AGAIN}")
        entries[name] = (dtype, tuple(shape))
    return entries


def _object(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    if key not in metadata:
        raise ValueError(
            f"{path} has no {key} in its metadata, so it is no part of a whole model; give a "
            "folder that a run with export=true export_form=packed wrote"
        )
    values = parse_json(path, metadata[key], f"has metadata that are no JSON, {key}")
    if not isinstance(values, dict):
        raise ValueError(f"{path} has metadata that are no JSON object, {key}; {AGAIN}")
    return values


def _is_shape(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _bytes(header: TensorHeader) -> int:
    return prod(header.shape) * BITS[header.dtype] // 8

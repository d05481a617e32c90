"""Supports on disk: masks.safetensors holds packed bits, one per weight of a tensor.

A key is the name of a tensor in the checkpoint without a final `.weight`.  Its bits have the shape
of that tensor with the axis of the inputs moved to the end, and are packed along it; `shapes` and,
where inputs lie on another axis than the last, `input_axis` say how the tensor itself lies.
`stays_dense` names the linears that have no support.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import safe_open
from torch import Tensor

from sparsemend.files import replacing
from sparsemend.names import MASKS_FORMAT
from sparsemend.sparse.packing import pack, unpack

ALIGNMENT = 8  # of the first tensor's bytes, as safetensors writes
CHUNK = 2**24  # bytes copied at once


@dataclass(frozen=True)
class PackedMask:
    """A support: bits (.., O, ceil(I / 8)) of a tensor of `shape` with inputs on `input_axis`."""

    bits: Tensor
    shape: Sequence[int]
    input_axis: int

    @classmethod
    def of(cls, keep: Tensor) -> PackedMask:
        """The support `keep`, bool with inputs on the last axis."""
        return cls(pack(keep), keep.shape, keep.ndim - 1)

    def unpack(self) -> Tensor:
        """The support, bool of `shape`."""
        return unpack(self.bits, self.shape[self.input_axis]).movedim(-1, self.input_axis)


class PackedMasks(Mapping[str, Tensor]):
    """Supports by name, one bit per weight, of which each is unpacked when it is read."""

    def __init__(self, packed: Mapping[str, PackedMask]) -> None:
        self.packed = packed

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> PackedMasks:
        """Supports, bool with inputs on the last axis, packed where they are not yet."""
        if isinstance(masks, PackedMasks):
            return masks
        return cls({name: PackedMask.of(keep) for name, keep in masks.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.packed[name].unpack()

    def __contains__(self, name: object) -> bool:
        return name in self.packed

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)


@dataclass(frozen=True)
class SavedMasks:
    """Supports by the name of the saved tensor, without a final `.weight`.

    dense: saved tensors of linears none of which has a support; None where nothing says.
    """

    masks: Mapping[str, PackedMask]
    dense: Sequence[str] | None


def save_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write supports {linear name: bool (O, I)}, atomically."""
    write_masks([SavedMasks(PackedMasks.of(masks).packed, None)], path)


def write_masks(parts: Iterable[SavedMasks], path: Path) -> None:
    """Write supports, atomically, with no more than one part of them in memory."""
    shapes, axes, entries = {}, {}, {}
    dense: list[str] | None = None
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, TemporaryFile(dir=path.parent) as bytes_:
        for part in parts:
            for name, mask in part.masks.items():
                begin = bytes_.tell()
                bytes_.write(mask.bits.cpu().contiguous().numpy().tobytes())
                place = {"shape": list(mask.bits.shape), "data_offsets": [begin, bytes_.tell()]}
                entries[name] = {"dtype": "U8", **place}
                shapes[name] = list(mask.shape)
                if mask.input_axis != len(mask.shape) - 1:
                    axes[name] = mask.input_axis
            if part.dense is not None:
                dense = [*(dense or ()), *part.dense]
        metadata = {"format": MASKS_FORMAT, "shapes": json.dumps(shapes)}
        if axes:
            metadata["input_axis"] = json.dumps(axes)
        if dense is not None:
            metadata["stays_dense"] = json.dumps(dense)
        header = json.dumps({"__metadata__": metadata, **entries}).encode()
        header += b" " * (-len(header) % ALIGNMENT)
        bytes_.seek(0)
        with partial.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(bytes_, file, CHUNK)


def load_masks(path: Path) -> PackedMasks:
    """Supports, bool in the shapes of the saved tensors; ValueError on a file of another format.

    In memory they take what they take in the file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != MASKS_FORMAT:
            raise ValueError(f"{path} is not a {MASKS_FORMAT} file")
        shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
        axes: dict[str, int] = json.loads(metadata.get("input_axis", "{}"))
        return PackedMasks(
            {
                name: PackedMask(file.get_tensor(name), shape, axes.get(name, len(shape) - 1))
                for name, shape in shapes.items()
            }
        )

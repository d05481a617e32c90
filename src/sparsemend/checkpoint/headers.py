"""What a checkpoint folder says about itself without loading a weight.

A safetensors file opens with its header: 8 bytes little-endian length, then JSON with the dtype,
shape and data offsets of every tensor.  From names and shapes alone one sees the repeated blocks
(`prefix.<int>.rest`), their linears (two-dimensional weights), and what is not a linear: a
transposed Conv1D (weight (I, O), bias (O,)) and fused or numbered experts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

TensorShape = tuple[int, ...]

BLOCK_TENSOR = re.compile(r"(?P<prefix>.*?)\.?\b\d+\.(?P<rest>.+)")
WITHOUT_HEADERS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file; `begin` is its first byte counted from the file's start."""

    dtype: str
    shape: TensorShape
    begin: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Tensor name -> header; raises ValueError on a file that is cut short or not safetensors."""
    size = path.stat().st_size
    entries, length = _entries(path)
    entries.pop("__metadata__", None)
    try:
        headers = {
            name: TensorHeader(
                entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
            )
            for name, entry in entries.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path} is not a safetensors file: its header does not describe tensors"
        ) from error
    if end > size:
        raise ValueError(f"{path} is cut short: {size} bytes of {end}; copy or download it again")
    return headers


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata that the writer of a safetensors file put into its header; {} without any."""
    metadata: dict[str, str] = _entries(path)[0].get("__metadata__", {})
    return metadata


def _entries(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header's JSON and its length in bytes; raises ValueError where there is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"{path} is not a safetensors file, or it is cut short")
        text = file.read(length)
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a safetensors file: its header is no JSON") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is not a safetensors file: its header is not a JSON object")
    return entries, length


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, [] if it only has .bin files.

    Raises FileNotFoundError on a folder without weights or with a shard missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files in {index.name}: "
                f"{missing[0]}; copy or download it again"
            )
        return [folder / name for name in names]
    if any((folder / name).is_file() for name in WITHOUT_HEADERS):
        return []
    raise FileNotFoundError(
        f"model folder {folder} has no weights: neither model.safetensors nor "
        "model.safetensors.index.json; save the model with save_pretrained into it"
    )


def read_shapes(folder: Path) -> dict[str, TensorShape]:
    """Tensor name -> shape over all safetensors files of a checkpoint; {} without any."""
    return {
        name: header.shape
        for path in weight_files(folder)
        for name, header in read_header(path).items()
    }


def block_tensors(shapes: dict[str, TensorShape]) -> dict[str, TensorShape]:
    """The tensors inside the decoder blocks: those under the prefix with the most parameters."""
    prefixes = {name: match["prefix"] for name in shapes if (match := BLOCK_TENSOR.fullmatch(name))}
    parameters: Counter[str] = Counter()
    for name, prefix in prefixes.items():
        parameters[prefix] += prod(shapes[name])
    if not parameters:
        return {}
    decoder = parameters.most_common(1)[0][0]
    return {name: shapes[name] for name, prefix in prefixes.items() if prefix == decoder}


def _matrices(shapes: dict[str, TensorShape]) -> Iterator[tuple[str, TensorShape, int | None]]:
    """(module name, weight shape, bias length or None) of every two-dimensional weight."""
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) == 2:
            bias = shapes.get(name.removesuffix("weight") + "bias")
            yield name.removesuffix(".weight"), shape, bias[0] if bias else None


def has_transposed_layers(blocks: dict[str, TensorShape]) -> bool:
    """Whether a weight is stored (I, O): its bias is as long as its second axis, not its first."""
    return any(
        bias == shape[1] != shape[0] for _, shape, bias in _matrices(blocks) if bias is not None
    )


def has_experts(blocks: dict[str, TensorShape]) -> bool:
    """Whether blocks hold experts.

    Transformers fuses experts into 3-D weights, even where the file numbers them.
    """
    return any(re.search(r"\bexperts\b", name) for name in blocks)


def linear_shapes(blocks: dict[str, TensorShape]) -> dict[str, TensorShape]:
    """Name -> (O, I) of the linears inside the blocks, by shape alone.

    A square weight looks the same transposed; it counts as transposed where another weight is.
    """
    transposed = has_transposed_layers(blocks)
    return {
        name: shape
        for name, shape, bias in _matrices(blocks)
        if not (transposed and bias is not None and bias == shape[1])
    }

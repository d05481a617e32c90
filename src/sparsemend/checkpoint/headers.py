"""The headers of safetensors files: names, dtypes, shapes and places of tensors, without a weight.

A file opens with 8 bytes little-endian length and then JSON: the dtype, shape and data offsets of
every tensor.  A header is believed only where every tensor has the bytes of its shape, none shares
a byte with another, and together they fill the file; a tensor is then never read from the bytes of
another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from sparsemend.names import PACKED_FILES

TensorShape = tuple[int, ...]

WITHOUT_HEADERS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses a longer one too
BITS = {  # of one value, by the dtypes of safetensors 0.8
    "BOOL": 8,
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file; `begin` is its first byte counted from the file's start."""

    dtype: str
    shape: TensorShape
    begin: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Tensor name -> header; raises ValueError on a file that is cut short or not safetensors."""
    entries, start = _entries(path)
    entries.pop("__metadata__", None)
    headers = {name: _tensor(path, name, entry, start) for name, entry in entries.items()}
    _check_places(path, headers, start)
    return headers


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata that the writer of a safetensors file put into its header; {} without any."""
    metadata: dict[str, str] = _entries(path)[0].get("__metadata__", {})
    return metadata


def parse_json(path: Path, text: str | bytes, what: str) -> Any:
    """The value of a JSON text of a file; raises ValueError that names the file and `what`.

    A name given twice is refused, since one of the two values would be lost, and so is half a
    surrogate pair, which is no text and cannot be printed.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_distinct)
        if "\\ud" in decoded.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} {what}: {reason}") from error
    return value


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ValueError that names the file where it holds none."""
    values = parse_json(path, path.read_bytes(), "is not valid JSON")
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary; raises ValueError where a name comes twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is given twice")
    return values


def _entries(path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON, and the first byte after it; raises ValueError where there is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"{path} is not a safetensors file, or it is cut short")
        if length > LONGEST_HEADER:
            raise ValueError(
                f"{path} is not a safetensors file: its header would take {length:,} bytes, above "
                f"{LONGEST_HEADER:,}"
            )
        text = file.read(length)
    entries = parse_json(path, text, "is not a safetensors file: its header is no JSON")
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is not a safetensors file: its header is not a JSON object")
    metadata = entries.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path} is not a safetensors file: its metadata are not texts by name")
    return entries, 8 + length


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorHeader:
    """The header of one entry, whose offsets count from byte `start` of the file."""
    values = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (values.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not name.isprintable():
        raise ValueError(f"{path} is not a safetensors file: {name!r} is no name of a tensor")
    if not (
        isinstance(dtype, str) and _naturals(shape) and _naturals(offsets) and len(offsets) == 2
    ):
        raise ValueError(
            f"{path} is not a safetensors file: its header does not describe tensors, first {name}"
        )
    if dtype not in BITS:
        raise ValueError(f"{path} stores {name} as {dtype!r}, which is no dtype of safetensors")
    bits, held = prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if held * 8 != bits:
        raise ValueError(
            f"{path} is damaged: {name} of shape {tuple(shape)} in {dtype} takes {bits / 8:,.0f} "
            f"bytes, and its header gives it {held:,}; copy or download it again"
        )
    return TensorHeader(dtype, tuple(shape), start + offsets[0])


def _naturals(values: Any) -> TypeGuard[list[int]]:
    """Whether these are a list of integers of at least 0."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(path: Path, headers: Mapping[str, TensorHeader], start: int) -> None:
    """Raise ValueError unless the tensors, one after another, fill the file from `start` on."""
    size, end, previous = path.stat().st_size, start, "the header"
    for name, header in sorted(headers.items(), key=lambda item: (item[1].begin, _bytes(item[1]))):
        if header.begin != end:
            raise ValueError(
                f"{path} is damaged: {name} begins at byte {header.begin:,}, and {previous} before "
                f"it ends at {end:,}; copy or download it again"
            )
        end, previous = end + _bytes(header), name
    if end > size:
        raise ValueError(f"{path} is cut short: {size} bytes of {end}; copy or download it again")
    if end < size:
        raise ValueError(
            f"{path} is damaged: {size} bytes, of which its header describes {end}; copy or "
            "download it again"
        )


def _bytes(header: TensorHeader) -> int:
    return prod(header.shape) * BITS[header.dtype] // 8


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, [] if it only has .bin files.

    Raises FileNotFoundError on a folder without weights or with a shard missing, ValueError on an
    index that does not name files of the folder, and where packed weights lie beside.
    """
    check_one_form(folder)
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(_read_index(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files in {index.name}: "
                f"{missing[0]}; copy or download it again"
            )
        return [folder / name for name in names]
    if any((folder / name).is_file() for name in WITHOUT_HEADERS):
        return []
    if any(folder.glob(PACKED_FILES)):
        raise ValueError(
            f"model folder {folder} holds packed weights, which are there to be multiplied by: "
            f"read them by sparsemend-generate {folder}, or export the run again with "
            "export_form=dense"
        )
    raise FileNotFoundError(
        f"model folder {folder} has no weights: neither model.safetensors nor "
        f"{INDEX}; save the model with save_pretrained into it"
    )


def check_one_form(folder: Path) -> None:
    """Raise ValueError where ordinary and packed weights lie in one folder: which are meant?"""
    packed = min(folder.glob(PACKED_FILES), default=None)
    names = ("model.safetensors", INDEX, *WITHOUT_HEADERS)
    other = next((name for name in names if (folder / name).is_file()), None)
    if packed is not None and other is not None:
        raise ValueError(
            f"model folder {folder} holds both {other} and packed weights ({packed.name}), which "
            "may differ; move those that are not meant away"
        )


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name of the same folder."""
    files = json_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} has no weight_map of tensor names to files")
    for name, file in files.items():
        plain = isinstance(file, str) and file == Path(file).name and file.isprintable()
        if not (plain and name.isprintable()):
            raise ValueError(f"{index} places {name!r} in {file!r}, which is no file of its folder")
    return files


def read_headers(files: list[Path]) -> dict[str, tuple[Path, TensorHeader]]:
    """Tensor name -> (file, header) over the files of one checkpoint.

    Raises ValueError where two files hold a tensor of one name, or where the index beside several
    files places one in another.
    """
    headers: dict[str, tuple[Path, TensorHeader]] = {}
    for path in files:
        for name, header in read_header(path).items():
            if name in headers:
                raise ValueError(
                    f"{path} and {headers[name][0].name} both hold {name}; remove the file that "
                    "is not of this checkpoint"
                )
            headers[name] = (path, header)
    return headers


def read_checkpoint_headers(folder: Path) -> dict[str, tuple[Path, TensorHeader]]:
    """Tensor name -> (file, header) of a checkpoint folder; {} if it only has .bin files.

    Raises ValueError where a shard lacks a tensor that the index places in it.
    """
    files = weight_files(folder)
    headers = read_headers(files)
    index = folder / INDEX
    if files and files[0].name != "model.safetensors":
        for name, file in _read_index(index).items():
            if name not in headers or headers[name][0].name != file:
                raise ValueError(
                    f"{folder / file} lacks {name}, which {INDEX} places in it; copy or download "
                    "the checkpoint again"
                )
    return headers


def read_shapes(folder: Path) -> dict[str, TensorShape]:
    """Tensor name -> shape over all safetensors files of a checkpoint; {} without any."""
    return {name: header.shape for name, (_, header) in read_checkpoint_headers(folder).items()}

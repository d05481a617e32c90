"""A small sharded checkpoint with masks as bytes, and seeded ways to damage it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX, CONFIG, MASKS = "model.safetensors.index.json", "config.json", "masks.safetensors"


@dataclass
class Folder:
    """Files by name; a header is kept apart from the bytes that it describes."""

    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """The bytes of every file."""
        files = {name: json.dumps(value).encode() for name, value in self.texts.items()}
        for name, header in self.headers.items():
            text = json.dumps(header).encode()
            files[name] = len(text).to_bytes(8, "little") + text + self.bodies[name]
        return files


def sound_folder() -> Folder:
    """Two blocks of two linears in half precision, 2:4, one file per block, with their masks."""
    folder, places, random = Folder(), {}, np.random.default_rng(0)
    masks: dict[str, np.ndarray] = {}
    for block, shard in enumerate(SHARDS):
        tensors: dict[str, np.ndarray] = {f"layers.{block}.norm.weight": np.ones(8, np.float16)}
        for name, shape in (("up", (16, 8)), ("down", (8, 16))):
            keep = random.random((*shape[:-1], shape[-1] // 4, 4)).argsort(-1).reshape(shape) < 2
            weight = (random.random(shape) + 0.5) * keep
            tensors[f"layers.{block}.{name}.weight"] = weight.astype(np.float16)
            masks[f"layers.{block}.{name}"] = keep
        _place(folder, shard, tensors, {"format": "pt"})
        places |= dict.fromkeys(tensors, shard)
    packed = {name: np.packbits(k, axis=-1, bitorder="little") for name, k in masks.items()}
    shapes = json.dumps({name: keep.shape for name, keep in masks.items()})
    metadata = {"format": "sparsemend-masks-1", "shapes": shapes, "stays_dense": "[]"}
    _place(folder, MASKS, packed, metadata)
    folder.texts[INDEX] = {"metadata": {"total_size": 1}, "weight_map": places}
    folder.texts[CONFIG] = {
        "model_type": "llama",
        "vocab_size": 64,
        "text_config": {"num_hidden_layers": 2, "hidden_size": 8},
        "max_position_embeddings": 32,
        "is_encoder_decoder": False,
    }
    return folder


def _place(
    folder: Folder, name: str, tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for tensor, values in tensors.items():
        dtype = {"float16": "F16", "uint8": "U8"}[str(values.dtype)]
        offsets = [len(body), len(body) + values.nbytes]
        header[tensor] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        body += values.tobytes()
    folder.headers[name], folder.bodies[name] = header, body


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 1.5, 2**70, 10**400, "", "x", "../x", "/etc/passwd", "a\0b", "\ud800",
    [], [[]], [-1, 2], [2**70, 2**70], [1, 2, 3], {}, {"a": {}}, float("nan"),
)  # fmt: skip


def _change_inside(value: Any, random: Random) -> Any:
    """The value with one of its parts, chosen by chance, replaced by an odd one or removed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        if random.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if random.random() < 0.1:
            return {**value, random.choice(("\ud800", "a\0b", "\x1b[31m", "")): value[key]}
        return {**value, key: _change_inside(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        return [*value[:at], _change_inside(value[at], random), *value[at + 1 :]]
    if isinstance(value, str) and value[:1] in "{[" and random.random() < 0.8:
        return json.dumps(_change_inside(json.loads(value), random))  # JSON inside metadata
    if type(value) is int and random.random() < 0.5:
        return value + random.choice((-value - 1, -2, 2, 8, 16, 2**40))
    return random.choice(ODD)


def _change_value(folder: Folder, random: Random) -> dict[str, bytes]:
    part = random.choice((folder.headers, folder.headers, folder.texts))
    name = random.choice(list(part))
    part[name] = _change_inside(part[name], random)
    return folder.files()


def _overlap(folder: Folder, random: Random) -> dict[str, bytes]:
    """One tensor of a file is given the place of another, or both exchange theirs."""
    header = folder.headers[random.choice(list(folder.headers))]
    one, other = random.sample([name for name in header if name != "__metadata__"], 2)
    places = header[one]["data_offsets"], header[other]["data_offsets"]
    header[one]["data_offsets"] = places[1]
    if random.random() < 0.5:
        header[other]["data_offsets"] = places[0]
    return folder.files()


def _shift(folder: Folder, random: Random) -> dict[str, bytes]:
    """Bytes are put before or after those of the tensors."""
    name = random.choice(list(folder.bodies))
    more = bytes(random.choice((1, 2, 64)))
    body = folder.bodies[name]
    folder.bodies[name] = more + body if random.random() < 0.5 else body + more
    return folder.files()


def _cut(folder: Folder, random: Random) -> dict[str, bytes]:
    files = folder.files()
    name = random.choice(list(files))
    return {**files, name: files[name][: random.randrange(len(files[name]))]}


def _scramble(folder: Folder, random: Random) -> dict[str, bytes]:
    """Some bytes at the start of a file, among them those of a length, are others."""
    files = folder.files()
    name = random.choice(list(files))
    content = bytearray(files[name])
    for _ in range(random.choice((1, 1, 3, 20))):
        content[random.randrange(min(len(content), 400))] = random.randrange(256)
    return {**files, name: bytes(content)}


def _give_length(folder: Folder, random: Random) -> dict[str, bytes]:
    files = folder.files()
    name = random.choice(list(folder.headers))
    length = random.choice((0, 1, 2, 7, 2**31, 2**62, 2**64 - 1))
    return {**files, name: length.to_bytes(8, "little") + files[name][8:]}


def _nest(folder: Folder, random: Random) -> dict[str, bytes]:
    files = folder.files()
    name = random.choice(list(files))
    text = random.choice((b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'{"a": 1, "a": 2}'))
    opening = len(text).to_bytes(8, "little") if name in folder.headers else b""
    return {**files, name: opening + text}


def _say_twice(folder: Folder, random: Random) -> dict[str, bytes]:
    """A tensor's name is given a second time, with the place of another."""
    name = random.choice(list(folder.headers))
    header = folder.headers[name]
    one, other = random.sample([tensor for tensor in header if tensor != "__metadata__"], 2)
    text = json.dumps(header)[:-1] + f", {json.dumps(one)}: {json.dumps(header[other])}}}"
    opening = len(text).to_bytes(8, "little")
    return {**folder.files(), name: opening + text.encode() + folder.bodies[name]}


def _swap_files(folder: Folder, random: Random) -> dict[str, bytes]:
    files = folder.files()
    one, other = random.sample(list(files), 2)
    if random.random() < 0.5:
        return {name: content for name, content in files.items() if name != one}
    return {**files, one: files[other], other: files[one]}


DAMAGES: tuple[Callable[[Folder, Random], dict[str, bytes]], ...] = (
    _change_value, _change_value, _change_value, _change_value, _overlap, _shift, _cut, _scramble,
    _give_length, _nest, _say_twice, _swap_files,
)  # fmt: skip


def write_damaged(folder: Path, seed: int) -> str:
    """Write the checkpoint, damaged in one way; returns the name of the damage."""
    random = Random(seed)
    damage = DAMAGES[seed % len(DAMAGES)]
    folder.mkdir()
    for name, content in damage(sound_folder(), random).items():
        (folder / name).write_bytes(content)
    return damage.__name__

"""A model folder with one thing wrong in it: its config.json, or the header of its weights.

Every mutation is drawn from a seed, so a number says which one it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Values = dict[str, Any]
ODD = [0, -1, 1, 3, 1.5, "4", "", "nonsense", None, True, [], [1, 2], {}, {"a": 1}]
TYPES = ["qwen2", "mistral", "gpt2", "t5", "vit", "bert", "mixtral", "mamba", "no_such_type", ""]


@dataclass
class Weights:
    """A safetensors file taken apart: the entries of its header, and the bytes after it."""

    header: Values
    data: bytes

    @classmethod
    def read(cls, path: Path) -> Weights:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        return cls(json.loads(content[8:end]), content[end:])

    def write(self, path: Path) -> None:
        header = json.dumps(self.header).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + self.data)

    def names(self) -> list[str]:
        return sorted(name for name in self.header if name != "__metadata__")


def mutate(folder: Path, seed: int) -> str:
    """Spoil `folder` in place; returns what was done, for the message of a failing test."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        return _spoil_config(folder / "config.json", draw)
    return _spoil_weights(folder / "model.safetensors", draw)


def _spoil_config(path: Path, draw: random.Random) -> str:
    values = json.loads(path.read_text())
    kind = draw.choice(
        ["number", "number", "number", "any", "any", "nested", "gone", "type", "text"]
    )
    if kind == "text":
        text = path.read_text()
        cut = draw.randrange(len(text))
        path.write_text(draw.choice([text[:cut], f"[{text}]", "", "null", text + "}"]))
        return f"config.json is other text, cut at {cut}"
    level = values
    if kind == "nested":
        level = values[draw.choice([k for k, v in values.items() if isinstance(v, dict)])]
    if kind == "type":
        if draw.random() < 0.5:
            values["model_type"] = draw.choice(TYPES)
        else:
            values["architectures"] = draw.choice([None, [], ["GPT2LMHeadModel"], ["No"], "x", 1])
        done = f"model_type={values['model_type']} architectures={values['architectures']}"
    elif kind == "number":
        key = draw.choice([k for k, v in values.items() if type(v) is int])
        level[key] = draw.choice([0, -1, level[key] + 1, level[key] - 1, level[key] * 2, 1])
        done = f"{key}={level[key]}"
    else:
        key = draw.choice(sorted(level))
        if kind == "gone":
            del level[key]
            done = f"{key} left out"
        else:
            level[key] = draw.choice(ODD)
            done = f"{kind} {key}={level[key]!r}"
    path.write_text(json.dumps(values))
    return f"config.json: {done}"


def _spoil_weights(path: Path, draw: random.Random) -> str:
    weights = Weights.read(path)
    spoil = draw.choice(SPOILS)
    done = spoil(weights, draw)
    weights.write(path)
    if draw.random() < 0.1:
        content = path.read_bytes()
        cut = draw.randrange(len(content))
        path.write_bytes(content[:cut])
        done += f", and cut to {cut} bytes"
    return f"model.safetensors: {done}"


def _rename(weights: Weights, draw: random.Random) -> str:
    old = draw.choice(weights.names())
    new = draw.choice(
        [old + "s", f"model.{old}", old.replace("layers", "blocks"), "x", old.upper()]
    )
    weights.header[new] = weights.header.pop(old)
    return f"{old} is {new}"


def _prefix(weights: Weights, draw: random.Random) -> str:
    prefix = draw.choice(["module.", "_orig_mod.", "base_model.model.", "model.", "x."])
    metadata = {k: v for k, v in weights.header.items() if k == "__metadata__"}
    tensors = {prefix + name: weights.header[name] for name in weights.names()}
    weights.header = {**metadata, **tensors}
    return f"every name begins with {prefix}"


def _drop(weights: Weights, draw: random.Random) -> str:
    name = draw.choice(weights.names())
    part = draw.choice([name, name.rpartition(".")[0], ".".join(name.split(".")[:3])])
    for each in [each for each in weights.names() if each.startswith(part)]:
        del weights.header[each]
    return f"{part} is left out"


def _swap(weights: Weights, draw: random.Random) -> str:
    one, other = draw.sample(weights.names(), 2)
    header = weights.header
    header[one], header[other] = header[other], header[one]
    return f"{one} and {other} change places"


def _add(weights: Weights, draw: random.Random) -> str:
    name = draw.choice(weights.names())
    new = draw.choice([f"{name}_copy", name.replace(".0.", ".9."), name.replace("weight", "bias")])
    weights.header[new] = weights.header[name]
    return f"{new} is there too"


def _reshape(weights: Weights, draw: random.Random) -> str:
    name = draw.choice(weights.names())
    entry = weights.header[name]
    rows, *rest = entry["shape"]
    entry["shape"] = draw.choice(
        [[*rest, rows], [rows * 2, *rest], [rows - 1, *rest], [*rest], [-rows, *rest], "x", None]
    )
    return f"{name} has shape {entry['shape']}"


def _retype(weights: Weights, draw: random.Random) -> str:
    name = draw.choice(weights.names())
    entry = weights.header[name]
    entry["dtype"] = draw.choice(["F16", "BF16", "I32", "U32", "F64", "I8", "F8_E4M3", "Q4", 7])
    if entry["dtype"] in ("F16", "BF16"):
        entry["shape"] = [entry["shape"][0] * 2, *entry["shape"][1:]]  # as many bytes
    return f"{name} has dtype {entry['dtype']}"


def _shift(weights: Weights, draw: random.Random) -> str:
    name = draw.choice(weights.names())
    entry = weights.header[name]
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = draw.choice(
        [[begin + 4, end + 4], [0, end - begin], [end, begin], [begin], "x", [begin, end * 100], []]
    )
    return f"{name} lies at {entry['data_offsets']}"


def _spoil_entry(weights: Weights, draw: random.Random) -> str:
    name = draw.choice(weights.names())
    weights.header[name] = draw.choice([None, [], {}, "x", {"dtype": "F32"}, 3])
    return f"{name} is {weights.header[name]!r}"


SPOILS: list[Callable[[Weights, random.Random], str]] = [
    _rename,
    _prefix,
    _drop,
    _swap,
    _add,
    _reshape,
    _retype,
    _shift,
    _spoil_entry,
]

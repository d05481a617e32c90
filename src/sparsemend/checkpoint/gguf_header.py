"""The header of a GGUF file: what it says of the model, and the type and shape of every tensor.

Little-endian: `GGUF`, a version, the number of tensors and of values; the values, each a key, a
type and a value; the tensors, each a name, its sizes (the innermost first), a type and the place of
its data, which begins at the next multiple of `general.alignment`.  (The format is described in
ggml's docs/gguf.md.)  transformers reads it again when it loads the tensors; here it is read
without torch.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sparsemend.config.gguf import MAGIC

VERSIONS = (2, 3)  # 1 counted in 32 bits; no file of it is about
# type of a value -> its form for struct
NUMBERS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i"},
    **{6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
TEXT, ARRAY = 8, 9
ALIGNMENT = 32  # bytes, where the file does not say


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its shape as torch counts it, the name of its type, its first byte and length."""

    shape: tuple[int, ...]
    type: str
    begin: int
    length: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says: its values, of an array of texts the number alone, and its tensors."""

    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Of the model, in llama.cpp's names."""
        return str(self.values.get("general.architecture", ""))

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    def stored_as(self) -> str:
        """The types of the tensors, the most frequent first: `Q4_1 (210 tensors), F32 (61)`."""
        counts = Counter(tensor.type for tensor in self.tensors.values()).most_common()
        texts = [f"{kind} ({count})" for kind, count in counts]
        return ", ".join([texts[0].replace(")", " tensors)"), *texts[1:]]) if texts else "nothing"

    @property
    def bits(self) -> int:
        """Of the type that holds most weights, as its name says: 4 of Q4_1, 32 of F32."""
        held: Counter[str] = Counter()
        for tensor in self.tensors.values():
            held[tensor.type] += prod(tensor.shape)
        return int(re.findall(r"\d+", held.most_common(1)[0][0])[0])

    def of_model(self, key: str) -> Any:
        """The value of a key of the architecture's own, None where the file does not have it."""
        return self.values.get(f"{self.architecture}.{key}")


def read_gguf_header(file: Path) -> GgufHeader:
    """The header of a file; raises ValueError in one line where it is none, cut short or odd."""
    size = file.stat().st_size
    if size < len(MAGIC) + 20:
        raise ValueError(f"{file} is no GGUF file, or it is cut short ({size} bytes)")
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        try:
            return _Reader(data).header(size)
        except (struct.error, IndexError, UnicodeDecodeError, MemoryError) as error:
            raise ValueError(
                f"{file} is cut short or damaged: its header goes on after byte {size}, or is no "
                "text where it should be; get the file again"
            ) from error
        except ValueError as error:
            raise ValueError(f"{file} {error}") from error


class _Reader:
    """Reads one value after the other from the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def header(self, size: int) -> GgufHeader:
        """Everything up to the data of the tensors, which must lie within `size` bytes."""
        if self.data[: len(MAGIC)] != MAGIC:
            raise ValueError("is no GGUF file: it does not begin with the letters GGUF")
        self.at = len(MAGIC)
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "GGUF for big-endian machines" if swapped else f"GGUF of version {version}"
            raise ValueError(f"is {what}; give a little-endian file of version 3")
        tensors, values = self.number("Q"), self.number("Q")
        facts = dict(self.entry() for _ in range(self.count(values, 13)))
        places = [self.place() for _ in range(self.count(tensors, 24))]
        alignment = facts.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"says general.alignment={alignment}, which is no number of bytes")
        start = -(-self.at // alignment) * alignment
        tensor_of = {place[0]: _tensor(*place, start) for place in places}
        end = max((t.begin + t.length for t in tensor_of.values()), default=0)
        if end > size:
            raise ValueError(
                f"is cut short: its tensors end at byte {end:,}, the file at {size:,}; get it again"
            )
        return GgufHeader(facts, tensor_of)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def count(self, number: int, least: int) -> int:
        """A number of things of at least so many bytes each; IndexError where they cannot fit."""
        if number * least > len(self.data) - self.at:
            raise IndexError(number)
        return number

    def text(self) -> str:
        length = self.count(self.number("Q"), 1)
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def entry(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number("I"))

    def value(self, kind: int) -> Any:
        """A value of a type; of an array of texts their number."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"has a value of type {kind}, which GGUF does not have")
        inner, entries = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            form = f"<{self.count(entries, struct.calcsize(NUMBERS[inner]))}{NUMBERS[inner]}"
            values = list(struct.unpack_from(form, self.data, self.at))
            self.at += struct.calcsize(form)
            return values
        if inner != TEXT:
            raise ValueError(f"has an array of values of type {inner}, which is not read")
        for _ in range(self.count(entries, 8)):
            length = self.number("Q")  # before the sum, which reads `at` first
            self.at += self.count(length, 1)
        return entries

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, place of the data) of a tensor."""
        name = self.text()
        shape = tuple(self.number("Q") for _ in range(self.count(self.number("I"), 8)))
        return name, shape[::-1], self.number("I"), self.number("Q")


def _tensor(name: str, shape: tuple[int, ...], kind: int, place: int, start: int) -> GgufTensor:
    """A tensor whose place is counted from byte `start`; raises ValueError on an unknown type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        quantisation = GGMLQuantizationType(kind)
    except ValueError:
        raise ValueError(
            f"stores {name} in type {kind}, which the installed gguf does not have; "
            "pip install --upgrade gguf, or give a file of an older type such as Q8_0"
        ) from None
    weights, size = GGML_QUANT_SIZES[quantisation]
    return GgufTensor(shape, quantisation.name, start + place, prod(shape) // weights * size)

# ruff: noqa: E402  (without the package gguf there is nothing to import)
from __future__ import annotations

import struct
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
import numpy as np
from support.gguf_files import finish, write_values

from sparsemend.checkpoint.gguf_header import read_gguf_header


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A file with a value of every kind and tensors of three types."""
    writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.epsilon", 0.5)
    writer.add_bool("llama.flag", True)
    writer.add_uint64("llama.long", 2**40)
    writer.add_array("llama.heads", [4, 2])
    writer.add_array("tokenizer.ggml.tokens", ["a", "bé", ""])
    writer.add_tensor("norm.weight", np.ones(32, np.float32))
    for name in ("one.weight", "two.weight"):
        packed = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("half.weight", np.ones((2, 3), np.float16))
    return finish(writer, tmp_path / "whole.gguf")


def test_a_header_is_what_the_reader_of_the_package_reads(whole: Path) -> None:
    header, reader = read_gguf_header(whole), gguf.GGUFReader(whole)
    assert {name: (t.shape, t.type, t.begin, t.length) for name, t in header.tensors.items()} == {
        t.name: (tuple(map(int, t.shape))[::-1], t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in reader.tensors
    }
    read = {key: field.contents() for key, field in reader.fields.items() if "GGUF." not in key}
    read["tokenizer.ggml.tokens"] = len(read["tokenizer.ggml.tokens"])
    assert header.values == read


def test_a_header_counts_types_and_weights(whole: Path) -> None:
    header = read_gguf_header(whole)
    assert header.stored_as() == "Q4_1 (2 tensors), F32 (1), F16 (1)"
    assert (header.weights, header.bits, header.of_model("block_count")) == (550, 4, 3)


def test_a_file_cut_short_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    content, cut = whole.read_bytes(), tmp_path / "cut.gguf"
    end = max(t.begin + t.length for t in read_gguf_header(whole).tensors.values())
    for length in range(0, end, 11):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf .*cut short"):
            read_gguf_header(cut)


def test_a_damaged_header_is_read_or_refused_in_one_line(whole: Path, tmp_path: Path) -> None:
    content, spoilt = whole.read_bytes(), tmp_path / "spoilt.gguf"
    generator = np.random.default_rng(0)
    refusals = []
    for _ in range(100):
        bytes_ = bytearray(content)
        bytes_[generator.integers(4, 700)] = generator.integers(256)
        spoilt.write_bytes(bytes_)
        try:
            read_gguf_header(spoilt)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 15
    assert [line for line in refusals if "\n" in line or not line.startswith(str(spoilt))] == []


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"PK\x03\x04", "is no GGUF file: it does not begin with the letters GGUF"),
        (b"GGUF\x00\x00\x00\x03", "is GGUF for big-endian machines"),
        (b"GGUF\x01\x00\x00\x00", "is GGUF of version 1"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, begin: bytes, reason: str) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(begin + bytes(64))
    with pytest.raises(ValueError, match=reason):
        read_gguf_header(file)


def test_a_type_that_the_package_does_not_have_is_refused(tmp_path: Path) -> None:
    file = write_values(tmp_path / "new.gguf", "llama")
    content = file.read_bytes()
    entry = struct.pack("<QQ", 32, 4)  # the sizes of its tensor, before the type
    at = content.index(entry) + len(entry)
    file.write_bytes(content[:at] + struct.pack("<I", 999) + content[at + 4 :])
    with pytest.raises(ValueError, match=r"stores token_embd\.weight in type 999, .*upgrade gguf"):
        read_gguf_header(file)

"""Seeded damage to data files: each is read as an independent reader reads it, or refused by name.

What a reader of ours returns is compared with a second reading of the same bytes, written here.
What it refuses is a ValueError or OSError of one line with the file's name.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load, save

from sparsemend.data.instruction_files import file_examples
from sparsemend.data.prompts import RowFormat
from sparsemend.data.text_files import load_texts
from sparsemend.data.tokens import Tokens

ROWS = [{"text": f"text {i}, ä – 漢字\n" * (i + 1), "n": i} for i in range(8)]
ALPACA = [
    {"instruction": f"Do {i}.", "input": "x" * (i % 3), "output": f"Done {i}."} for i in range(8)
]
FORMAT = RowFormat("alpaca", ("instruction", "input", "output"), empty_answers=False)
LINES = "".join(json.dumps(row, ensure_ascii=bool(row["n"] % 2)) + "\n" for row in ROWS)
TOKENS = torch.arange(60).view(6, 10)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


WHOLE: dict[str, bytes] = {
    "a.txt": "".join(str(row["text"]) for row in ROWS).encode(),
    "a.jsonl": LINES.encode(),
    "a.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "a.parquet": parquet(ROWS),
    "alpaca.json": json.dumps(ALPACA, indent=1).encode(),
    "tokens.safetensors": save({"input_ids": TOKENS}),
}


def ours(path: Path) -> object:
    if path.name == "alpaca.json":
        return [(e.prompt, e.answer) for e in file_examples(path, FORMAT, str(path))]
    if path.suffix == ".safetensors":
        files: dict[str, Any] = {"calibration": path, "train": path, "validation": None}
        data = Tokens(name="t", **files, test=path, seqlen=10, calibration_samples=1)
        return data.test(None).tolist()
    return load_texts("data.train", path, column="text")


def independent(path: Path) -> object:
    """The content by other means; any error means that there is none."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return load(content)["input_ids"][:, :10].long().tolist()
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(io.BytesIO(content), columns=["text"])
        return table["text"].to_pylist()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix == ".txt":
        return [text]
    if path.name == "alpaca.json":
        rows = json.loads(text) if text.strip()[:1] == "[" else by_line(text)
        return [asked(row) for row in rows]
    return [row["text"] for row in by_line(text)]


def by_line(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def asked(row: dict[str, Any]) -> tuple[str, str]:
    example = FORMAT.example({"input": "", **row}, where="")
    return example.prompt, example.answer


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def doubled(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.randint(1, 60))
    return content[:end] + content[start:]


def without(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 60) :]


def other_value(content: bytes, draw: random.Random) -> bytes:
    """A piece of another kind in the place of a few signs: what people's scripts write."""
    pieces = [b"null", b"NaN", b"[]", b"{}", b'"\\ud800"', b"\xff", b"\0", b"\r\n", b'"', b"1e999"]
    start = draw.randrange(len(content))
    return content[:start] + draw.choice(pieces) + content[start + draw.randint(0, 4) :]


def another_file(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(list(WHOLE.values()))


DAMAGE: list[Callable[[bytes, random.Random], bytes]] = [
    cut,
    flipped,
    doubled,
    without,
    other_value,
    another_file,
]


def check(name: str, seed: int, folder: Path) -> None:
    draw = random.Random(f"{name} {seed}")
    damage = DAMAGE[seed % len(DAMAGE)]
    path = folder / name
    path.write_bytes(damage(WHOLE[name], draw))
    case, refusal = f"{damage.__name__} {name} {seed}", None
    try:
        result = ours(path)
    except (ValueError, OSError) as error:
        refusal = str(error)
    if refusal is None:
        assert result == independent(path), case
    else:
        assert path.name in refusal, f"{case}: {refusal}"
        assert "\n" not in refusal, f"{case}: {refusal}"


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read_by_both(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WHOLE[name])
    assert ours(tmp_path / name) == independent(tmp_path / name) != []


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_is_read_rightly_or_refused_by_name(tmp_path: Path, name: str) -> None:
    for seed in range(len(DAMAGE)):
        check(name, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_many_damaged_files_are_read_rightly_or_refused_by_name(tmp_path: Path, name: str) -> None:
    for seed in range(len(DAMAGE), 9 * len(DAMAGE)):
        check(name, seed, tmp_path)

"""Checks of pre-tokenised files: one integer tensor `input_ids` (N, T) per safetensors file.

The ids are read through a memory map, a few million at a time, so that a file larger than the
memory is checked too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from sparsemend.checkpoint.headers import TensorHeader, read_header

INTEGERS = {
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}
IDS_AT_A_TIME = 1 << 22  # 32 MiB of int64


def check_tokens(key: str, path: Path, *, rows: int, seqlen: int, vocabulary: int | None) -> None:
    """Refuse a tokens file with fewer than `rows` rows of `seqlen` ids in [0, vocabulary)."""
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path} does not exist; give a safetensors tokens file")
    header = _input_ids(key, path)
    count, length = header.shape
    source, _, part = key.rpartition(".")
    if length < seqlen:
        raise ValueError(
            f"{key}={path} has rows of {length} tokens, shorter than {source}.seqlen={seqlen}; "
            f"set {source}.seqlen={length} or tokenise longer rows"
        )
    if count < rows:
        raise ValueError(
            f"{key}={path} has {count} rows, fewer than the {rows} needed; "
            + (
                f"set {source}.calibration_samples={count} or give more rows"
                if part == "calibration" and count
                else "give more rows"
            )
        )
    _check_ids(key, path, header, vocabulary)


def _input_ids(key: str, path: Path) -> TensorHeader:
    headers = read_header(path)
    try:
        with safe_open(path, framework="numpy"):  # holds the header to the file's own length
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{key}={path} is no whole safetensors file ({error}); save it again"
        ) from error
    if "input_ids" not in headers:
        names = ", ".join(sorted(headers)) or "nothing"
        raise ValueError(f"{key}={path} has no tensor `input_ids`; it holds {names}")
    header = headers["input_ids"]
    if header.dtype not in INTEGERS:
        raise ValueError(
            f"{key}={path}: input_ids has dtype {header.dtype}, which is not an integer type; "
            "save it as int32 or int64"
        )
    if len(header.shape) != 2:
        raise ValueError(
            f"{key}={path}: input_ids has shape {header.shape}, expected (rows, tokens)"
        )
    return header


def _check_ids(key: str, path: Path, header: TensorHeader, vocabulary: int | None) -> None:
    count, length = header.shape
    ids = np.memmap(
        path, dtype=INTEGERS[header.dtype], mode="r", offset=header.begin, shape=(count, length)
    )
    step = max(1, IDS_AT_A_TIME // length)
    for start in range(0, count, step):
        block = ids[start : start + step]
        low, high = int(block.min()), int(block.max())
        if low < 0:
            raise ValueError(f"{key}={path} has the token id {low}; ids are not negative")
        if vocabulary is not None and high >= vocabulary:
            raise ValueError(
                f"{key}={path} has the token id {high}, but the model's vocabulary has "
                f"{vocabulary} entries (0 to {vocabulary - 1}); use this model's tokenizer"
            )

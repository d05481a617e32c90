"""What an offline W&B run wrote to disk, read record by record.

A .wandb file is a LevelDB log: a header of seven bytes, then records in blocks of 32 KiB, each
piece behind checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32 * 1024, 7
WHOLE, LAST = 1, 4


@dataclass
class OfflineRun:
    """The merged content of one run."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    about: Any = None
    exit_code: int | None = None

    def curve(self, name: str) -> list[list[float]]:
        """[[trainer step, value], ...] of one key."""
        rows = [row for row in self.history if name in row]
        return [[row["trainer/global_step"], row[name]] for row in rows]

    def table(self, name: str) -> tuple[list[str], list[list[Any]]]:
        """(columns, rows) of a logged table."""
        path = next(row[name]["path"] for row in self.history if name in row)
        content = json.loads((self.folder / "files" / path).read_text())
        return content["columns"], content["data"]


def read_offline(run_folder: Path) -> OfflineRun:
    """The one W&B run below `run_folder`."""
    run, found = finished(run_folder)
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.about = record.run
            run.config |= {
                item.key: json.loads(item.value_json) for item in record.run.config.update
            }
        elif kind == "config":
            for item in record.config.update:
                put(run.config, item)
        elif kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                put(row, item)
            run.history.append(row)
        elif kind == "summary":
            for item in record.summary.update:
                put(run.summary, item)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def finished(run_folder: Path) -> tuple[OfflineRun, list[Any]]:
    """The run and its records.

    `finish` returns a moment before the service of this process has written all, so that ends
    first: the service waits for its writers.
    """
    wandb.teardown()
    (path,) = run_folder.glob("wandb/offline-run-*/*.wandb")
    content = list(records(path))
    assert content[-1].WhichOneof("record_type") == "exit"
    return OfflineRun(path.parent), content


def put(row: dict[str, Any], item: Any) -> None:
    """Store one item under its key, which may be a path."""
    *parents, last = item.nested_key or [item.key]
    for parent in parents:
        row = row.setdefault(parent, {})
    row[last] = json.loads(item.value_json)


def records(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        room = BLOCK - position % BLOCK
        if room < HEADER:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER
        if position + length > len(data):
            return  # half written
        parts += data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record

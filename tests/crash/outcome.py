"""What a run leaves, as values that equal those of another run only if both have the same bits."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from crash.attempts import TEMPORARY
from safetensors import SafetensorError, safe_open

SECTIONS = ("status", "config_hash", "protocol", "sparsity", "metrics", "repair", "curves")
# in the names of what no two runs share; overhead is a share of seconds
CLOCK = ("seconds", "tokens_per_second", "peak", "overhead")
TENSORS = ("masks.safetensors", "model/*.safetensors", "adapter/*", "window_losses/*")


def outcome(run: Path) -> dict[str, Any]:
    """Numbers and tensors of a finished run folder, by where they lie."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    facts = {f"result.json {key}": _timeless(result.get(key)) for key in SECTIONS}
    for pattern in TENSORS:
        for path in sorted(run.glob(pattern)):
            if path.suffix == ".safetensors":
                facts |= dict(_tensors(path, path.relative_to(run).as_posix()))
    return facts


def _tensors(path: Path, name: str) -> Iterator[tuple[str, str]]:
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key).contiguous()
            bits = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            facts = f"{tensor.dtype} {tuple(tensor.shape)}"
            yield f"{name} {key}", f"{facts} {hashlib.sha256(bits).hexdigest()}"


def _timeless(value: Any) -> Any:
    """`value` without what is measured by a clock."""
    if isinstance(value, Mapping):
        kept = (k for k in value if not any(word in k for word in CLOCK))
        return {key: _timeless(value[key]) for key in kept}
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two outcomes differ."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]


def broken(folder: Path) -> list[str]:
    """The files under their final names that cannot be read, of those that are written whole."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _hidden(path.relative_to(folder)) and not _readable(path)
    ]


def half_written(folder: Path) -> list[str]:
    """Files under temporary names, or where temporary files go, which no run should leave."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")))
    return [
        name.as_posix()
        for name in names
        if name.parent.name == TEMPORARY
        or (name.name.startswith(".") and name.name not in (".hydra", ".cache"))
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".cache" for part in path.parts)


def _readable(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return all(file.get_slice(key) is not None for key in file.keys())  # noqa: SIM118
        elif path.suffix == ".ckpt":
            with zipfile.ZipFile(path) as file:
                return file.testzip() is None
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True

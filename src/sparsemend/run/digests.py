"""Hashes of everything that decides the bits of a cached result."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel

from sparsemend.blocks.residency import residency_of
from sparsemend.config.locations import PACKAGE
from sparsemend.config.values import digest, plain
from sparsemend.data.base import Examples
from sparsemend.files import file_digest
from sparsemend.run.machine import machine


def section(cfg: DictConfig, name: str) -> Any:
    """A group of the config as plain values."""
    return plain(cfg[name])


def with_files(value: Any) -> Any:
    """`value` with the checksum of every file that one of its strings names."""
    if isinstance(value, dict):
        return {key: with_files(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_files(item) for item in value]
    if isinstance(value, str) and Path(value).is_file():
        return [value, file_digest(Path(value))]
    return value


def model_digest(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of a model's configuration, its attention, and every weight as loaded."""
    hasher = hashlib.sha256(model.config.to_json_string().encode())
    hasher.update(str(model.config._attn_implementation).encode())  # in no config.json
    hasher.update((residency_of(model).fingerprint() or "").encode())  # of blocks that are in files
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            continue
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(raw_bytes(tensor))
    return hasher.hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's bytes in row-major order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def tokens_digest(tokens: Tensor) -> str:
    """SHA-256 (hex) of token windows (N, T)."""
    return hashlib.sha256(f"{tuple(tokens.shape)}".encode() + raw_bytes(tokens)).hexdigest()


def examples_digest(examples: Examples | None) -> str | None:
    """SHA-256 (hex) of windows and labels."""
    if examples is None:
        return None
    return digest([tokens_digest(examples.tokens), tokens_digest(examples.labels)])


def environment(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Everything else that decides bits: the machine, this source, attention, where blocks lie."""
    return {
        **machine(device),
        "source": source_digest(),
        "attention": cfg.model.get("attention"),
        "offload": section(cfg, "hardware").get("offload"),
    }


@cache
def source_digest() -> str:
    """SHA-256 (hex) of this package's Python files: another version may compute other bits."""
    return digest([file_digest(path) for path in sorted(PACKAGE.rglob("*.py"))])

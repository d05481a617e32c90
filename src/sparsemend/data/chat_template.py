"""Whether a model's tokenizer has a chat template, read from its folder (no torch)."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.config.locations import resolve_path

FILES = ("chat_template.jinja", "chat_template.json")
FOLDER = "additional_chat_templates"


def check_chat_template(key: str, model: DictConfig) -> None:
    """Raise ValueError where files of this machine say that the tokenizer has no chat template."""
    folder = Path(resolve_path(str(model.get("path", ""))))
    if "architecture" in model or (folder.is_dir() and not _has_template(folder)):
        raise ValueError(lacks_template(key))


def lacks_template(key: str) -> str:
    """The message where `key` asks for a template that the tokenizer does not have."""
    return (
        f"{key}=true, but the tokenizer of this model has no chat template "
        f"({FILES[0]}, or chat_template in tokenizer_config.json), as base models have none; set "
        f"{key}=false, or give an instruct model"
    )


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in FILES) or (folder / FOLDER).is_dir():
        return True
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return isinstance(values, dict) and bool(values.get("chat_template"))

"""What reads the tokenizer of a model folder, told from its files (no torch)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.checkpoint.headers import json_object
from sparsemend.config.locations import resolve_path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
MODEL, FAST, SETTINGS = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
INSTALL = "pip install 'sparsemend[sentencepiece]'"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer of any kind; without one it is for data in tokens."""
    return any((folder / name).exists() for name in TOKENIZERS)


def check_has_tokenizer(what: str, model: DictConfig, remedy: str) -> None:
    """Raise ValueError where the folder of config section `model` has no tokenizer.

    what: who needs one.  A model on the hub passes, and so does one that trains its tokenizer.
    """
    folder = Path(resolve_path(str(model.get("path", ""))))
    if "architecture" not in model and folder.is_dir() and not has_tokenizer(folder):
        raise ValueError(
            f"{what} reads text, and model folder {folder} has no tokenizer ({FAST} or another of "
            f"{', '.join(TOKENIZERS[1:])}); copy the model's tokenizer there, or {remedy}"
        )


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError on broken files, and where the only one is of a package that is missing."""
    if (folder / SETTINGS).is_file():
        json_object(folder / SETTINGS)
    if (folder / FAST).exists():
        _check_begins(folder / FAST)
    file = folder / MODEL
    if (folder / FAST).is_file() or not file.is_file() or find_spec("sentencepiece") is not None:
        return
    with file.open("rb") as opened:
        if opened.read(1) not in (b"", b"\n"):  # SentencePiece's first byte: a protobuf's field 1
            return
    raise ValueError(
        f"model folder {folder} has a {MODEL} of SentencePiece and no {FAST}; {INSTALL}, "
        f"or save the tokenizer again where it is installed, which writes {FAST}"
    )


def _check_begins(file: Path) -> None:
    """Raise ValueError unless a file begins as a JSON object does: it may be of many megabytes."""
    begin = b""
    if file.is_file():
        with file.open("rb") as opened:
            begin = opened.read(64).lstrip()
    if not begin.startswith(b"{"):
        raise ValueError(
            f"{file} is no JSON object, so it is no tokenizer; copy or download it again"
        )

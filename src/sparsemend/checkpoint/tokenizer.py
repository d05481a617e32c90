"""What reads the tokenizer of a model folder, told from its files (no torch)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from sparsemend.config.locations import resolve_path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
MODEL, FAST = "tokenizer.model", "tokenizer.json"
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
    """Raise ValueError where the only tokenizer is a file for which a package is missing."""
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

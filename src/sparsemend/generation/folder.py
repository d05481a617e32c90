"""The model folder that a place means, checked as far as its files tell without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsemend.checkpoint.headers import check_one_form, weight_files
from sparsemend.checkpoint.model import model_folder, read_config
from sparsemend.checkpoint.packed import PackedFolder, is_packed, read_packed
from sparsemend.config.locations import is_local, resolve_path, tilde_hint
from sparsemend.names import PACKED_FILES

# of a repository with packed weights, all that its model and its tokenizer may be read from
BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")


@dataclass(frozen=True)
class ModelPlace:
    """A folder or hub id, and what its packed files hold, None where its weights are ordinary."""

    path: str
    packed: PackedFolder | None


def find_place(asked: str) -> ModelPlace:
    """The place of a model: a folder, a run folder that was exported, a GGUF file or a hub id.

    Raises FileNotFoundError or ValueError in one line where it cannot be one.
    """
    run = Path(resolve_path(asked))
    folder = model_folder(run)
    asked = asked if folder == run else str(folder)
    if is_packed(folder):
        read_config(folder)
        check_one_form(folder)
        return ModelPlace(asked, read_packed(folder))
    if folder.is_dir():
        read_config(folder)
        weight_files(folder)
    elif folder.exists() and folder == Path(asked):
        raise ValueError(f"{asked} is a file; give the folder of a model, or a GGUF file")
    elif folder == Path(asked) and is_local(asked):
        raise FileNotFoundError(f"{asked} does not exist{tilde_hint(asked)}; give a model folder")
    elif folder == Path(asked) and (snapshot := _packed_snapshot(asked)) is not None:
        return ModelPlace(str(snapshot), read_packed(snapshot))
    return ModelPlace(asked, None)


def _packed_snapshot(repository: str) -> Path | None:
    """The folder of a hub id with packed weights, downloaded where it is not yet.

    None where it has none, or where the hub does not say, which the loader then words.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(repository, allow_patterns=PACKED_FILES))
    except (OSError, ValueError):
        return None
    if not is_packed(snapshot):
        return None
    return Path(snapshot_download(repository, allow_patterns=[PACKED_FILES, *BESIDE]))

"""The upload of an exported model to the Hub, with huggingface_hub's endpoint, token and habits.

The repository is made, and the right to write to it asked for, before a run's work begins; its
files go up in one commit when the folder is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from sparsemend.errors import blame
from sparsemend.names import MASKS, PACKED_FILES

# weights of an earlier upload, dense or packed, in other files than those of this one: a reader
# would take them for this model's
WEIGHTS = [
    "model.safetensors*",
    "model-*-of-*.safetensors",
    PACKED_FILES,
    "pytorch_model*.bin*",
    MASKS,
]


def open_repository(repository: str, *, private: bool | None) -> None:
    """Make OWNER/NAME unless it is there, and check that files can be written to it.

    private: of a new one; None: as its owner's settings say.  Raises ValueError, also where it is
    to be private, is there, and is not.
    """
    with _blame(repository, "check the name, and that the token of HF_TOKEN may write to it"):
        HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().auth_check(repository, write=True)
        if private and HfApi().model_info(repository).private is False:
            raise ValueError(
                f"export_private=true, and export_push={repository} is there and public; make it "
                "private in its settings, or name another"
            )


def push(folder: Path, repository: str) -> str:
    """Upload the files of `folder` in one commit; return its address.  Raises ValueError.

    Weights of an earlier upload go with that commit where this one has no file of their name.
    """
    with _blame(repository, f"the model is whole: hf upload {repository} {folder}"):
        commit = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload by sparsemend",
            delete_patterns=WEIGHTS,
        )
        return str(commit.commit_url)


@contextmanager
def _blame(repository: str, remedy: str) -> Iterator[None]:
    with blame(f"export_push={repository}", remedy):
        yield

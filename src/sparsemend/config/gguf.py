"""The place of a model that is a GGUF file: the file, and the folder that it is turned into.

GGUF is llama.cpp's format: one file with header, tokenizer and tensors, most of them quantised.  A
model in it is named by the file, or by `package:NAME`, the only .gguf file of an installed Python
package.  Its folder of safetensors lies in the user's cache, under a name that says of what file
(SHA-256), by which transformers, and in what form of ours it was made:

    $SPARSEMEND_CACHE, else $XDG_CACHE_HOME/sparsemend, else ~/.cache/sparsemend
        gguf/<file>-<digest>-<transformers>-<form>
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from sparsemend.files import file_digest, user_cache

PACKAGED = "package:"
MAGIC = b"GGUF"
FORM = 2  # of the folder; another number turns every file anew


def gguf_file(path: str) -> Path | None:
    """The GGUF file that a model's path names, None where it names none that is here."""
    if path.startswith(PACKAGED):
        return packaged_file(path.removeprefix(PACKAGED))
    file = Path(path)
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        return file if opened.read(len(MAGIC)) == MAGIC else None


def packaged_file(package: str) -> Path | None:
    """The only .gguf file of an installed package, which is not imported; None without one."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    files = [Path(str(entry.locate())) for entry in listed if entry.suffix == ".gguf"]
    return files[0] if len(files) == 1 and files[0].is_file() else None


def gguf_digest(path: str) -> str | None:
    """SHA-256 (hex) of the GGUF file that a path names; None where there is none."""
    file = gguf_file(path)
    return None if file is None else digest_of(file)


def digest_of(file: Path) -> str:
    """SHA-256 (hex) of a file, computed once per process while its size and time stay."""
    facts = file.stat()
    return _digest(file, facts.st_size, facts.st_mtime_ns)


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    return file_digest(file)


def converted_folder(file: Path) -> Path:
    """The folder that a GGUF file is turned into, there or not."""
    made_by = metadata.version("transformers")
    return cache_folder() / f"{file.stem}-{digest_of(file)[:16]}-{made_by}-{FORM}"


def cache_folder() -> Path:
    """The folder of all of them."""
    return user_cache() / "gguf"

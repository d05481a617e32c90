"""A spoilt model folder is refused in one line, or what is loaded are the tensors of its file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families.proof import load
from safetensors.torch import load_file
from support.fuzzed_folder import mutate
from support.process_state import process_state
from support.tiny_models import save_tiny
from torch import nn

QUICK, ALL = range(25), range(25, 300)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "saved"
    save_tiny("llama", folder)
    return folder


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with process_state():
        yield


@pytest.mark.parametrize(
    "seed", [*QUICK, *(pytest.param(seed, marks=pytest.mark.families) for seed in ALL)]
)
def test_a_spoilt_folder_is_refused_in_one_line_or_gives_its_own_tensors(
    seed: int, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(saved, folder)
    done = mutate(folder, seed)
    line = None
    try:
        model = load(folder)
    except (ValueError, OSError) as error:
        line = str(error).strip()
    if line is None:
        check_holds_the_file(model, folder / "model.safetensors", done)
    else:
        assert len(line.splitlines()) == 1, f"{done}: not one line but: {line!r}"


def check_holds_the_file(model: nn.Module, path: Path, done: str) -> None:
    """Every parameter is the file's tensor of its name, and every tensor is a parameter.

    Transformers takes names with and without its `model.` in front.
    """
    tensors = {bare(name): tensor for name, tensor in load_file(path).items()}
    parameters = {bare(name): p for name, p in model.named_parameters()}  # a tied one once
    strangers = parameters.keys() ^ tensors.keys()
    assert not strangers, f"{done}: only in one of model and file: {sorted(strangers)[:3]}"
    for name, parameter in parameters.items():
        expected = tensors[name].to(parameter.dtype)
        assert torch.equal(parameter, expected), f"{done}: {name} is not the file's"


def bare(name: str) -> str:
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name

"""A workspace, and whole runs on the pretended device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.command_runs import contract, put_workspace, sparsemend_here
from support.families import random_model
from support.pretended_device import Seen, pretended_device
from support.pretended_hardware import PRETENDED

RunFar = Callable[..., Seen]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two blocks, and tokens files."""
    folder = put_workspace(tmp_path_factory.mktemp("workspace"))
    random_model("llama", num_hidden_layers=2).save_pretrained(folder / "llama")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 96, (4, 40), generator=generator)
    save_file({"input_ids": tokens}, folder / "test.safetensors")
    return folder


@pytest.fixture
def far() -> Iterator[Seen]:
    with pretended_device() as seen:
        yield seen


@pytest.fixture
def run_far(workspace: Path, far: Seen) -> RunFar:
    """Runs the command on the pretended device; it must end well."""

    def run(out: Path, *overrides: str, code: int = 0) -> Seen:
        # as hardware=gpu has it: what CUDA has in no deterministic form is refused
        asked = [*contract(workspace, out), PRETENDED, "hardware.deterministic=true", *overrides]
        done = sparsemend_here(asked, workspace)
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
        return far

    return run

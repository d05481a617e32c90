"""The documented command for scripts on a workspace of files, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import sparsemend

SCHEMA = json.loads((Path(sparsemend.__file__).parent / "result" / "schema.json").read_text())
SEQLEN = 32


def contract(workspace: Path, out: Path, *overrides: str) -> list[str]:
    """The documented command for scripts, with this workspace's files."""
    return [
        "model=local",
        f"model.path={workspace / 'llama'}",
        "model.dtype=float32",
        "data=tokens",
        *(
            f"data.{key}={workspace / name}.safetensors"
            for key, name in (("calibration", "cal"), ("train", "train"), ("test", "test"))
        ),
        f"data.seqlen={SEQLEN}",
        "data.calibration_samples=8",
        "pruner=wanda",
        "sparsity=0.6",
        "pattern=unstructured",
        "export=true",
        "seed=0",
        f"hydra.run.dir={out}",
        *overrides,
    ]


def sparsemend_command(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparsemend.cli.main", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


def result_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())

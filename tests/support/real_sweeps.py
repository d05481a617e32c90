"""Real sweeps of real runs on a random model: start one, kill one, read what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import torch
from safetensors.torch import save_file
from support.families import random_model

import sparsemend

SCHEMA = json.loads((Path(sparsemend.__file__).parent / "result" / "schema.json").read_text())
SOURCE = str(Path(sparsemend.__file__).parents[1])


def tokens_run(folder: Path) -> list[str]:
    """Overrides of a sweep on a random LLaMA and tokens files, which are made in `folder`."""
    random_model("llama").save_pretrained(folder / "llama")
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("calibration", 8), ("train", 24), ("test", 6)):
        tokens = torch.randint(3, 96, (rows, 32), generator=generator)
        save_file({"input_ids": tokens}, folder / f"{name}.safetensors")
    return [
        "-m",
        "model=local",
        f"model.path={folder / 'llama'}",
        "model.dtype=float32",
        "data=tokens",
        *(f"data.{k}={folder / k}.safetensors" for k in ("calibration", "train", "test")),
        "data.seqlen=32",
        "data.calibration_samples=8",
        "hardware.threads=1",
        "export=true",
    ]


def start(arguments: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sparsemend.cli.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(arguments: Sequence[str], cwd: Path) -> str:
    process = start(arguments, cwd)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def kill_once(process: subprocess.Popen[str], folder: Path, finished: int) -> list[Path]:
    """kill -9 when so many cells under `folder` have finished; their result files."""
    deadline = time.monotonic() + 200
    while True:
        done = [p for p in folder.glob("*/result.json") if status_of(p) == "finished"]
        if len(done) >= finished:
            break
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return [path for path in folder.glob("*/result.json") if status_of(path) == "finished"]


def status_of(path: Path) -> str:
    return str(json.loads(path.read_text())["status"])


def results(folder: Path) -> list[dict]:
    paths = sorted(folder.glob("*/result.json"), key=lambda path: int(path.parent.name))
    found = [json.loads(path.read_text()) for path in paths]
    for result in found:
        jsonschema.validate(result, SCHEMA)
    return found

"""A reader's folder: where the commands of a page run, with what they name in capitals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

import sparsemend
from sparsemend.config.locations import resolve_path

SOURCE = str(Path(sparsemend.__file__).parents[1])


def execute(argv: Sequence[str], folder: Path, environment: Sequence[str] = ()) -> str:
    """Run a command of this Python's environment in a folder; what it said.  It must exit 0."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    variables |= dict(pair.split("=", 1) for pair in environment)
    variables["PYTHONPATH"] = f"{variables['PYTHONPATH']}{os.pathsep}{SOURCE}".strip(os.pathsep)
    done = subprocess.run(
        [str(Path(sys.executable).with_name(argv[0])), *argv[1:]],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}"
    return done.stdout


def put_tokens(path: Path) -> None:
    """40 windows of 256 random tokens of the embedded model's vocabulary."""
    generator = torch.Generator().manual_seed(0)
    save_file({"input_ids": torch.randint(3, 2048, (40, 256), generator=generator)}, path)


def put_text(path: Path) -> None:
    """A text of about 30,000 tokens, some of its words seldom."""
    lines = (f"The answer to question {n} of chapter {n % 7} is {n * n}." for n in range(3000))
    path.write_text("\n".join(lines))


def put_answers(path: Path) -> None:
    """140 prompts with answers, one JSON object a line."""
    rows = ({"instruction": f"double {n}", "input": "", "output": str(2 * n)} for n in range(140))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def put_model(path: Path) -> None:
    path.symlink_to(resolve_path("embedded:tiny"))


def put_run(path: Path) -> None:
    """An exported run."""
    execute(["sparsemend", "method=none", "export=true", f"hydra.run.dir={path}"], path.parent)


def put_exported(path: Path) -> None:
    """An exported model."""
    put_run(path.with_name("exported"))
    path.symlink_to(path.with_name("exported") / "model")


def put_packed(path: Path) -> None:
    """A model that was exported packed."""
    run = path.with_name("packed_run")
    packed = ("sparsity=0.7", "export=true", "export_form=packed")
    execute(["sparsemend", "method=none", *packed, f"hydra.run.dir={run}"], path.parent)
    path.symlink_to(run / "model")


def put_evolution(path: Path) -> None:
    """A run whose zeros moved."""
    steps = ("method.max_steps=12", "method.update_interval=4", "method.accumulation_steps=2")
    execute(["sparsemend", "method=seft", *steps, f"hydra.run.dir={path}"], path.parent)


# what commands name in capitals and read
PLACEHOLDERS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys([f"{name}.safetensors" for name in ("CAL", "CALIBRATION")], put_tokens),
    **dict.fromkeys([f"{name}.safetensors" for name in ("TRAIN", "TEST")], put_tokens),
    **dict.fromkeys(["TRAIN.txt", "CALIBRATION.txt", "TEST.txt"], put_text),
    "FILE.jsonl": put_answers,
    "DIR": put_model,
    "RUN": put_run,
    "FOLDER": put_exported,
    "PACKED": put_packed,
    "RUN_FOLDER": put_evolution,
}


def put_placeholders(argv: Sequence[str], folder: Path) -> None:
    """What a command names in capitals, unless it writes that itself or it is there already."""
    read = [word for word in argv if not word.startswith("hydra.run.dir=")]
    for name in re.findall(r"\b[A-Z][A-Z_]+(?:\.[a-z]+)?\b", " ".join(read)):
        if name in PLACEHOLDERS and not (folder / name).exists():
            PLACEHOLDERS[name](folder / name)

"""One job of every experiment on a random model: `pytest -m experiments` (minutes, not in CI)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.families import random_model

from sparsemend.config.locations import conf_folder
from sparsemend.table.experiments import Experiment, experiments
from sparsemend.table.job import STEPS

SEQLEN = 32
# what a random model of two small blocks needs set smaller
TRAINED = ("method.max_steps=60", "method.windows_per_step=2", "method.validate_every=60")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA folder and tokens files."""
    folder = tmp_path_factory.mktemp("workspace")
    random_model("llama").save_pretrained(folder / "llama")
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("calibration", 64), ("train", 40), ("test", 6)):
        tokens = torch.randint(3, 96, (rows, SEQLEN), generator=generator)
        save_file({"input_ids": tokens}, folder / f"{name}.safetensors")
    return folder


def overrides(experiment: Experiment, workspace: Path, out: Path) -> list[str]:
    job = experiment.jobs[-1]
    trained = int(job.values[STEPS]) > 0
    set_here = ("model=", "data=", "method.rank=")
    kept = [line for line in job.overrides if not line.startswith(set_here)]
    return [
        f"experiment={experiment.name}",
        f"scale={scale_of(experiment)}",
        "model=local",
        f"model.path={workspace / 'llama'}",
        "model.dtype=float32",
        "data=tokens",
        *(
            f"data.{part}={workspace / part}.safetensors"
            for part in ("calibration", "train", "test")
        ),
        f"data.seqlen={SEQLEN}",
        "data.calibration_samples=64",
        *(  # tasks need a tokenizer
            ["evaluation=[perplexity]", "~evaluation.zero_shot"]
            if "zero_shot" in job.values["evaluation"]
            else []
        ),
        *(TRAINED if trained else ()),
        *kept,
        *(["method.rank=16"] if sets_rank(experiment) else []),  # its narrowest linear has 16
        f"hydra.run.dir={out}",
    ]


def scale_of(experiment: Experiment) -> str:
    """The scale that the header names, without the shipped tasks, which need a tokenizer."""
    text = (conf_folder() / "experiment" / f"{experiment.name}.yaml").read_text()
    found = re.search(rf"experiment={experiment.name} scale=\[?(\w+)", text)
    assert found is not None, f"{experiment.name} does not say how it runs tiny"
    return found[1]


def sets_rank(experiment: Experiment) -> bool:
    text = (conf_folder() / "experiment" / f"{experiment.name}.yaml").read_text()
    return re.search(r"^ +(method\.)?rank:", text, re.MULTILINE) is not None


@pytest.mark.experiments
@pytest.mark.parametrize("experiment", experiments(), ids=lambda e: e.name)
def test_one_job_of_every_experiment_runs_on_a_random_model(
    experiment: Experiment, workspace: Path, tmp_path: Path
) -> None:
    arguments = overrides(experiment, workspace, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "sparsemend.cli.main", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,  # a busy machine takes many times the usual quarter of a minute
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["sparsity"]["achieved"] == pytest.approx(
        float(experiment.jobs[-1].values["sparsity"]),
        abs=0.05,  # rows of 24 to 64 inputs lose whole weights
    )

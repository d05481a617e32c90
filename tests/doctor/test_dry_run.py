"""The dry run of a whole run against the run itself, tensor by tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.configs import compose
from support.families import random_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsemend.doctor.blank_job import around_fits, blank_job, hydra_of_a_job
from sparsemend.doctor.dry_run import (
    DryStages,
    _fit_as_a_stage,
    dry_run,
    shorten,
)
from sparsemend.doctor.ledger import Ledger
from sparsemend.doctor.peaks import Extent, by_stage
from sparsemend.run.job import build
from sparsemend.run.run import stages

pytestmark = pytest.mark.slow


class Noting(TorchDispatchMode):
    """Enters real tensors in a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.ledger.note(leaf)
        return result


@pytest.mark.parametrize("choice", [["method=masked_lora"], ["pruner=sparsegpt", "method=none"]])
def test_a_dry_run_peaks_where_the_run_does(choice: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    random_model("llama", hidden_size=64, intermediate_size=160).save_pretrained(folder)
    lines = [f"data.{part}={folder}" for part in ("calibration", "train", "test")]
    cfg = compose(
        "run",
        [
            "data=tokens",
            *lines,
            "model=local",
            f"model.path={folder}",
            "model.dtype=float32",
            "model.context_length=32",
            *choice,
            "cache=off",
        ],
    )
    extent = Extent(3, 4)
    dry = by_stage(dry_run(cfg, extent).moments)
    ledger, out = Ledger(), tmp_path / "run"
    short = shorten(cfg)
    job = blank_job(short, out, build(short.model), extent, DryStages(ledger, None))
    fits = around_fits(partial(_fit_as_a_stage, ledger))
    with hydra_of_a_job(), fits, Noting(ledger):
        stages(job)
    real = by_stage(ledger.peaks)
    assert dry.keys() == real.keys()
    for stage, peak in real.items():
        if stage[0] == "load":
            continue  # the loader's own tensors are not a skeleton's
        # lightning and the loader make small tensors of their own
        assert dry[stage].bytes == pytest.approx(peak.bytes, rel=0.15), stage


def test_the_command_examines_a_run_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """In a process of its own: autograd counts its devices at the first backward."""
    written = tmp_path / "doctor.json"
    line = ["hardware=gpu", "method=none", "--device-gb", "24", "--host-gb", "64"]
    command = [sys.executable, "-m", "sparsemend.cli.doctor", *line, "--json", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(written.read_text())
    assert content["verdict"] == "go"
    peaks = {(need["stage"], need["device"]): need["peak_bytes"] for need in content["needs"]}
    assert peaks["evaluate: dense", "device"] > 0
    assert peaks["prune", "device"] > 0


def test_a_packed_export_is_examined_as_a_dense_one() -> None:
    cfg = compose("run", ["export=true", "export_form=packed", "export_values=int8"])
    short = shorten(cfg)
    assert (short.export_form, short.export_values) == ("dense", None)
    assert cfg.export_form == "packed"

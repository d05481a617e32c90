"""The wheel, installed alone into an empty virtual environment, does the main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def carry_out(*argv: str | Path, folder: Path) -> str:
    """Run a command outside the checkout, with nothing of it on Python's path; what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_does_the_main_job_outside_the_checkout(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip")
    carry_out(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT, folder=tmp_path)
    (wheel,) = tmp_path.glob("sparsemend-*.whl")
    carry_out(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    commands = tmp_path / "venv" / "bin"
    carry_out(commands / "pip", "install", "-q", wheel, folder=tmp_path)
    where = carry_out(
        commands / "python", "-c", "import sparsemend; print(sparsemend.__file__)", folder=tmp_path
    )
    assert where.startswith(str(tmp_path))
    carry_out(commands / "sparsemend", "hydra.run.dir=run", folder=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    metrics = [
        result["metrics"][state]["perplexity/test"] for state in ("dense", "pruned", "repaired")
    ]
    assert metrics == pytest.approx([15.025, 35.593, 18.555], rel=5e-3)
    for name in ("bench", "check", "evolution", "tables"):
        assert f"sparsemend-{name}" in carry_out(
            commands / f"sparsemend-{name}", "--help", folder=tmp_path
        )

"""Scripts about Triton's kernels, each in a process of its own: Triton reads its settings once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRET = "TRITON_INTERPRET"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")


def interpret(script: str) -> None:
    """Run a script whose kernels Triton interprets on this CPU."""
    _run(script, {**os.environ, INTERPRET: "1"})


def compile_for_cards(script: str, cache: Path) -> None:
    """Run a script that compiles kernels into an empty cache."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop(INTERPRET, None)
    _run(script, environment)


def _run(script: str, environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
